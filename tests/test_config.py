"""A profile is checked when it is made, and found by its name."""

import dataclasses

import pytest

from helpers.config import PROFILES, load_profile


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("epochs", 0, "greater than 0"),
        ("batch_size", "32", "valid integer"),
        ("validation_rows", 1.5, "less than 1"),
        ("alpha", 1.1, "less than or equal to 1"),
        ("teacher_learning_rate", float("nan"), "finite number"),
        ("lora_targets", "all", "'attention' or 'all_linear'"),
        ("learning_rate", 1e-4, "Unexpected keyword"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(PROFILES["quick"], **{field: value})
    assert "Profile" in str(error.value) and field in str(error.value) and allowed in str(error.value)


def test_a_profile_cannot_be_changed_after_it_is_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROFILES["quick"].epochs = 9


def test_an_unknown_profile_gives_the_nearest_name_and_all_others():
    with pytest.raises(ValueError, match=r"there is no profile 'qiuck'. Did you mean 'quick'\?") as error:
        load_profile("qiuck")
    assert [name for name in PROFILES if name not in str(error.value)] == []


@pytest.mark.parametrize(("gpu", "expected"), [(True, "colab"), (False, "quick")])
def test_auto_depends_on_the_gpu(monkeypatch, gpu, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert load_profile("auto").name == expected
