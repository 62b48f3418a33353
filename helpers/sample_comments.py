"""A synthetic comments, not Jigsaw: comments in the shape of Kaggle's files, for a first run with no data at hand.

`write_sample_comments` writes train.csv, test.csv and test_labels.csv from a seed. Nothing in them was written by a
Wikipedia editor: a grammar (below) makes talk-page comments with Jigsaw's label frequencies and lengths; the peoples
that `identity_hate` needs are invented. Scores on these comments show that the code works and how the methods differ
*here*; they say nothing about real toxic comments.

Single words do not decide the label, because the same insults stand in both classes: aimed at the reader (toxic), or
quoted, reported, negated, said of oneself or of a character (clean), and the same frames praise and insult. What
decides is who says what to whom, which a bag of words does not see.
"""

import argparse
import csv
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

from tqdm import tqdm

from helpers.config import LABELS
from helpers.runs import write_file

# Flips of `toxic` as shares of all rows, equal both ways to keep the prevalence: 2.2 % of the rows are mislabelled.
FLIPPED_TO_TOXIC = 0.011
FLIPPED_TO_CLEAN = 0.011
UNSCORED_SHARE = 0.015
OBFUSCATED_SHARE = 0.08
MOST_WORDS = 900


@dataclass(frozen=True)
class Kind:
    """A kind of comment: its share of all rows in per cent, its labels, and the grammar rule of its key sentence."""

    share: float
    labels: tuple[str, ...]
    rule: str
    sentences: int = 1  # how many key sentences it has


KINDS = (
    Kind(78.5, (), "plain"),
    Kind(2.4, (), "reported"),
    Kind(1.2, (), "quoted"),
    Kind(1.4, (), "negated"),
    Kind(1.4, (), "self_directed"),
    Kind(2.6, (), "venting"),
    Kind(1.6, (), "fiction"),
    Kind(1.4, (), "neutral_identity"),
    Kind(3.34, ("toxic",), "dismissal"),
    Kind(0.60, ("toxic", "insult"), "insult"),
    Kind(0.98, ("toxic", "obscene"), "swearing"),
    Kind(2.45, ("toxic", "obscene", "insult"), "obscene_insult"),
    Kind(0.90, ("toxic", "severe_toxic", "obscene", "insult"), "rage", 3),
    Kind(0.10, ("toxic", "severe_toxic", "obscene"), "swearing", 3),
    Kind(0.20, ("toxic", "insult", "identity_hate"), "hate"),
    Kind(0.64, ("toxic", "obscene", "insult", "identity_hate"), "obscene_hate", 2),
    Kind(0.16, ("toxic", "threat"), "threat"),
    Kind(0.14, ("toxic", "obscene", "insult", "threat"), "obscene_threat"),
)


def _choices(text: str) -> tuple[str, ...]:
    return tuple(" ".join(choice.split()) for choice in text.split("|"))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "sh", "ch")) else "s")


# Words that insult. They stand in toxic and in clean comments alike.
INSULT_NOUNS = _choices("""
    idiot | moron | fool | clown | halfwit | nitwit | dimwit | dunce | imbecile | simpleton | buffoon |
    blockhead | bonehead | numbskull | dolt | twit | twerp | pillock | plonker | muppet | prat | nincompoop |
    loser | creep | weasel | snake | rat | worm | parasite | leech | liar | coward | hypocrite | fraud | crook |
    bigot | tyrant | troll | vandal | jerk | git | wretch | scumbag | lowlife | slimeball | toad | pig | donkey
    | baboon | gasbag | windbag | blowhard | brat | snob | oaf | lout | slob | disgrace | joke | failure |
    nobody | dope | airhead | birdbrain | lamebrain | knucklehead | meathead | chump | stooge | lapdog |
    bootlicker | hack | charlatan | cheat | control freak | egomaniac | narcissist | pest | ignoramus | nuisance
    | menace | maniac | thug | goon | brute | ogre | gremlin | goblin | maggot | louse | flea | vulture | hyena
    | jackal | skunk | viper | swine | hog | mule | sheep | chicken | slug | sloth | crybaby | whiner | moaner |
    nag | wimp | weakling | pushover | doormat | bore | sponger | freeloader | scrounger | moocher | thief |
    swindler | cheapskate | miser | backstabber | traitor | turncoat | sellout | puppet | minion | crony | toady
    | flunkey | lackey | sycophant | impostor | poser | wannabe | show-off | braggart | loudmouth | blabbermouth
    | bigmouth | gossip | busybody | snoop | stalker | weirdo | freak | oddball | misfit | reject | has-been |
    flop | dud | washout | dropout | deadbeat | layabout | slacker | bum | idler | hooligan | bully | despot |
    dictator | fanatic | zealot | crank | quack | kook | crackpot | screwball | dingbat | goofball | goose |
    turkey | dodo | peabrain | pinhead | fathead | blunderer | bungler | amateur | bumpkin | peasant | boor |
    philistine | barbarian | troglodyte | caveman | knuckle-dragger | mouth-breather | sourpuss | killjoy |
    spoilsport | grouch | prig | pedant | know-it-all | upstart | rascal | scoundrel | villain | rogue | knave |
    blackguard | cur | beast | monster | fiend | ghoul | zombie
""")
INSULT_ADJECTIVES = _choices("""
    stupid | dumb | pathetic | ignorant | clueless | brainless | useless | worthless | incompetent | dense |
    thick | ridiculous | moronic | idiotic | gutless | spineless | cowardly | dishonest | lying | arrogant |
    pompous | smug | petty | childish | infantile | bitter | miserable | vile | disgusting | rotten | filthy |
    slimy | two-faced | lazy | ugly | smelly | deranged | delusional | unhinged | hopeless | illiterate |
    mindless | witless | talentless | gormless | insufferable | obnoxious | self-important | power-mad |
    revolting | despicable | repulsive | crooked | bumbling | snivelling | vapid | vacuous | inane | asinine |
    foolish | daft | dopey | dull | boring | tedious | feeble | weak | flabby | pasty | greasy | grubby | grimy
    | mouldy | putrid | rancid | foul | nasty | mean | cruel | spiteful | vicious | hateful | malicious |
    venomous | toxic | poisonous | sneaky | shifty | devious | deceitful | treacherous | corrupt | fake | phoney
    | hollow | shallow | vain | conceited | stuck-up | snooty | bossy | pushy | nosy | needy | whiny | sulky |
    moody | grumpy | hysterical | paranoid | rabid | brutish | boorish | crude | vulgar | uncouth | rude |
    unwashed | foul-mouthed | thin-skinned | thick-skulled | pea-brained | half-baked | washed-up | third-rate |
    second-rate | cheap | shabby | laughable | abysmal | dreadful | horrid | ghastly | wretched |
    tiresome | irritating | annoying | unbearable | unlovable | unwanted | friendless | joyless | humourless |
    heartless | soulless | shameless | clumsy | inept | fumbling | dim | slow-witted | empty-headed |
    simple-minded | narrow-minded | small-minded | gullible | servile | grovelling | creepy | sleazy | seedy |
    monstrous | odious | abominable | detestable | insolent | puffed-up | overrated | thieving | scheming |
    conniving | hypocritical
""")
SWEAR_NOUNS = _choices("""
    jackass | dumbass | asshat | turd | bastard | tosser | arse | ass | smartass | sod | lump of crap | pile of
    crap | heap of crap | bag of crap | little turd | stinking turd | lying bastard | arrogant ass | lazy sod |
    pompous arse
""")

# The same frames praise and insult: which of the two they do hangs on what fills the slots marked with a tilde.
NAMING_FRAMES = _lines("""
    you are a {~who}.
    you are a {~who} and always will be.
    what a {~who} you are, {user}.
    only a {~who} would {change} {part} like that.
    hey {user}, you {~who}, {~bid}.
    listen, you {~who}, {~bid}.
    face it: you are a {~who}.
    everybody knows that you are a {~who}.
    I hope you know what a {~who} you are.
    once a {~who}, always a {~who}.
    your mother raised a {~who}.
    look in the mirror and you will see a {~who}.
    how does a {~who} like you find the time?
    {~who}! That is the name for you.
    so you {changed} {part}, you {~who}?
    you {~who}, you {~who}!
    {~bid}, you {~who}.
    talking to you is like talking to a {~like}.
    you have the {virtue} of a {~like}.
    a {~like} comes to mind when I read your {~work}.
    if I had to compare you with something, it would be a {~like}.
    {user} is a {~who}, and so is everyone who stands by him.
""")
TELLING_FRAMES = _lines("""
    {~bid}, {user}.
    {~bid}!
    do us all a favour and {~bid}.
    why don't you {~bid}?
    for once in your life, {~bid}.
    it is time for you to {~bid}, {user}.
    your {~work} {~effect}.
    your {~work} about {article} {~effect}.
    your {~how} {~work} {~effect}.
    everything you write {~effect}.
    the way you {change} {part} {~effect}.
    I {~feel} you.
    I {~feel} you and your {~how} {~work}.
    we all {~feel} you, {user}.
    even your own family must {~feel} you.
    nobody could {~feel} you more than I do.
    how can one person be so {~how}?
    you are so {~how}.
    you are {~how}, {~how} and {~how}.
    I have never met anyone as {~how} as you.
    your {~work} is as {~how} as you are.
    only you could be this {~how}, {user}.
    you people are all so {~how}.
    these admins are {~how}, and you are the most {~how} of them.
    people {~feel} you because you are so {~how}.
    with your {~how} {~work}, who would not {~feel} you?
    another day, another bit of {~how} {~work} from {user}.
""")


def _toned(frames: tuple[str, ...], tone: str) -> tuple[str, ...]:
    return tuple(frame.replace("{~", "{" + tone + "_") for frame in frames)


GRAMMAR: dict[str, tuple[str, ...]] = {
    # ---- names and things -------------------------------------------------------------------------------------------
    "first": _choices("""
        Harrow | Lind | Ash | Brack | Thorn | Wex | Marl | Cald | Penn | Stone | Elder | Oaken | Raven |
        Silver | Grim | Holm | Dun | Kings | Fern | Mill | West | North | Salt | Copper | Amber | Winter |
        Hazel | Quill
    """),
    "second": _choices("""
        gate | moor | ford | wick | bury | dale | haven | field | mouth | stead | wood | bridge | combe |
        worth | minster | ley | brook | pool | cliff | well
    """),
    "place": _choices("{first}{second}"),
    "structure": _choices("""
        Canal | Railway | Abbey | Lighthouse | Observatory | Theatre | Viaduct | Museum | Cathedral |
        Harbour | Aqueduct | Library | Orchestra | Rovers | Football Club | Grammar School | Brewery |
        Tramway | Airport | Festival | Manuscript | Treaty | Uprising | Expedition | Dialect | Cheese |
        Comet | Fault | Wetlands
    """),
    "article": _choices("""
        {place} {structure} | {place} {structure} | {place} {structure} | the {year} {place} floods | the
        {place} bypass | Bishop of {place} | Battle of {place} | {surname}'s theorem | {given} {surname} |
        {given} {surname} | list of {place} {structure} trustees | the {place} dialect
    """),
    "given": _choices("""
        Edmund | Clara | Tobias | Agnes | Rupert | Mabel | Silas | Harriet | Conrad | Beatrix | Jasper |
        Ottilie | Lionel | Cordelia | Percy | Winifred | Amos | Philippa
    """),
    "surname": _choices("""
        Hargrave | Pettifer | Lockhart | Dunmore | Ashby | Whitlow | Carrow | Bramhall | Tolliver | Sedgwick
        | Marchbank | Ferrars | Quillan | Osgood | Penhallow | Thackeray-Lunn | Wainscott | Rookwood
    """),
    "user": _choices("""
        {first}{second}{number} | {given}{number} | {first} the {trade} | {trade}Of{place} |
        {surname}{number}
    """),
    "trade": _choices("""
        Miller | Potter | Mapper | Scribe | Baker | Cooper | Gardener | Archivist | Sailor | Weaver | Tiler
    """),
    "digit": tuple("0123456789"),
    "number": _choices("{digit} | {digit}{digit} | {digit}{digit}{digit}"),
    "count": _choices("two | three | four | five | six | seven | eight | a dozen | twenty | several"),
    "ordinal": _choices("first | second | third | fourth | last | opening | closing"),
    "year": _choices("18{digit}{digit} | 19{digit}{digit} | 19{digit}{digit} | 200{digit}"),
    "month": _choices("""
        January | February | March | April | May | June | July | August | September | October | November |
        December
    """),
    "when": _choices("""
        yesterday | this morning | last week | in {month} | on Tuesday | a month ago | last night | earlier
    """),
    "section": _choices("""
        history | early life | geography | legacy | criticism | reception | etymology | economy |
        discography | career | construction | design | aftermath | transport | wildlife | plot | references
        | see also
    """),
    "part": _choices("""
        the {section} section | the {ordinal} paragraph | the lead | the infobox | the {section} heading |
        the {ordinal} sentence | the table of {structure} openings | the caption | footnote {number} | the
        map
    """),
    "source": _choices("""
        the {place} Gazette | {surname} ({year}) | the {year} census | a book by {given} {surname} | the
        {place} Chronicle | the official site | a local newspaper | the parish register | a journal from
        {year} | the {year} atlas | an interview from {month} {year} | the {structure} archive | a thesis on
        {place}
    """),
    "fault": _choices("""
        unsourced | out of date | too long | hard to follow | one-sided | copied from the brochure | about
        something else | off by a year | missing a citation | repeated further down | badly formatted |
        ambiguous | contradicted by the map | full of jargon | absent from the source | rather thin |
        misleading as it stands
    """),
    "change": _choices("""
        revert | merge | split | rename | move | shorten | expand | restore | rewrite | tag | protect |
        archive | translate | copy-edit | cite | trim | update | redirect
    """),
    "changed": _choices("""
        reverted | merged | split | renamed | moved | shortened | expanded | restored | reworked | tagged |
        archived | translated | trimmed | updated | removed | deleted
    """),
    "good": _choices("""
        careful | patient | helpful | thoughtful | generous | tireless | fair | polite | brilliant | kind |
        sensible | thorough | welcoming | skilled | valued | meticulous | modest | talented | honest |
        gracious | attentive | reliable | wise | cheerful | diligent | gentle | clever | capable |
        considerate | inspiring | dependable | friendly | witty | humble | learned | resourceful |
        level-headed | courteous | quick | precise | lovely | wonderful | marvellous | splendid | warm |
        bright | decent | able | loyal
    """),
    "trusted": _choices("""
        gem | star | hero | treasure | champion | friend | asset | saint | gift | legend | pillar | genius | scholar |
        craftsman | ally | joy | delight | blessing | wizard | ace | neighbour | mentor | guide | teacher | gardener
    """),
    "helper": _choices("""
        editor | writer | reviewer | mediator | researcher | photographer | translator | colleague | mapper |
        {trusted}
    """),
    "animal": _choices("""
        goldfish | houseplant | doorknob | potato | brick | hamster | wet sock | soggy biscuit | mop |
        pigeon | teaspoon | garden gnome | broken toaster | bucket | slug | traffic cone | cabbage |
        jellyfish | turnip | doormat | lamp post | rubber duck | snail | sack of flour | wheelbarrow | dead
        battery | coat hanger | clam | beetroot | paper cup | stapler | mushroom | sponge | tadpole | fence
        post | parking meter | sandwich | kettle
    """),
    "virtue": _choices("""
        sense | charm | wit | brains | dignity | talent | backbone | manners | insight | shame | imagination
        | character | intelligence | self-respect
    """),
    "people": _choices("""
        Velorians | Ostranites | Quellans | Drumarites | Hesparines | Zanthorites | Morvellans | Ilkarians |
        Brellonians | Yssarites | Pellucians | Grothmarians
    """),
    "person": _choices("""
        Velorian | Ostranite | Quellan | Drumarite | Hesparine | Zanthorite | Morvellan | Ilkarian |
        Brellonian | Yssarite | Pellucian | Grothmarian
    """),
    "noun": INSULT_NOUNS,
    "nouns": tuple(_plural(noun) for noun in INSULT_NOUNS if " " not in noun),
    "adj": INSULT_ADJECTIVES,
    "swear": SWEAR_NOUNS,
    "swears": tuple(_plural(noun) for noun in SWEAR_NOUNS if " of " not in noun),
    "insultee": _choices("""
        {noun} | {adj} {noun} | {adj} {noun} | {adj}, {adj} {noun} | {adj} little {noun} | complete {noun}
    """),
    # ---- plain comments ---------------------------------------------------------------------------------------------
    "plain": _choices("""
        {civil} | {civil} | {civil} | {to_reader} | {to_reader} | {to_reader} | {praise} | {praise} | {praise} |
        {praise} | {annoyed} | {about}
    """),
    "aside": _choices("""
        {civil} | {civil} | {to_reader} | {to_reader} | {annoyed} | {about} | {about} | {praise} | {praise}
    """),
    "praise": _toned(NAMING_FRAMES + TELLING_FRAMES, "fair"),
    "fair_who": _choices("""
        {good} {helper} | {good} {helper} | {good} {helper} | {good}, {good} {helper} | {trusted} | complete
        {trusted} | bloody {good} {helper} | damn {good} {helper}
    """),
    "fair_how": _choices("""
        {good} | {good} | {good} | {good} | {good} | {good} | {good} | {good} | {good} | damn {good} |
        bloody {good}
    """),
    "fair_work": _choices("""
        prose | research | patience | handiwork | writing | humour | scholarship | photography | advice |
        cartography | kindness | guidance | care | attention | wording | generosity | help | feedback |
        encouragement | proofreading | translation | erudition | tact | diligence | storytelling | craft |
        thinking | draughtsmanship | calm | enthusiasm
    """),
    "fair_effect": _choices("""
        makes me smile | warms my heart | makes me want to write more | is a credit to the human race |
        belongs in a museum | lifts the mood of the room | should be framed | is beyond praise | would
        honour a {helper} | brightens my day | deserves a prize | is a gift to the reader | improves
        everything it touches | gives me hope | is worth its weight in gold | proves that you have a {good}
        mind | shows how much {virtue} you have | draws decent people here | is a joy to your parents | is
        admired by everyone | feeds the mind | never bores me | is music to my ears | is fit for the front
        page | makes the day | takes my breath away | is a cure for sorrow | soothes the soul
    """),
    "fair_feel": _choices("""
        admire | adore | respect | like | cherish | trust | look up to | cheer for | applaud | salute |
        appreciate | value | miss | believe in | love | thank | root for | praise | rely on | learn from |
        count on | welcome | treasure
    """),
    "fair_bid": _choices("""
        keep going | take a bow | stay with us | have a cup of tea | get some rest | come back soon | write
        more | take your time | enjoy the weekend | accept this barnstar | keep up the {good} work | pat
        yourself on the back | run for administrator | tell us more | go for a featured article | be proud |
        celebrate | keep smiling | stay as you are | teach me that trick | take the credit | raise a glass |
        sleep well | ask me anything | lead the project | join us in {place} | go first | get well soon |
        shut down the computer and enjoy the sun | leave some work for us
    """),
    "fair_like": _choices("""
        summer breeze | lighthouse | warm fire | wise owl | sunrise | spring morning | {good} friend |
        fountain | clear brook | harvest moon | safe harbour | fine old clock | {good} {helper} | symphony |
        cathedral | guiding star | cool drink | blue sky | garden in June
    """),
    "civil": _lines("""
        could somebody {change} {part} of {article}?
        I have {changed} {part} because it was {fault}.
        does anyone have access to {source}? I would like to check {part}.
        thanks for the quick answer about {article}, that settles it.
        I propose to {change} {article} unless there are objections by {month}.
        support, per {user}; {part} is {fault}.
        oppose for now, since {source} says otherwise.
        as {user} pointed out {when}, {part} is {fault}.
        is {source} a reliable source for {article}?
        I uploaded {count} photographs of {place} {when}; feel free to use them.
        the peer review of {article} is open until {month}.
        there is a discussion about {part} at the noticeboard.
        my edit {when} was meant to fix the date, not to {change} {part}.
        a bot {changed} {count} links in {article} {when}.
        sorry for the late reply, I was travelling to {place} {when}.
        we should wait for {source} before we {change} anything.
    """),
    "to_reader": _lines("""
        you are welcome to {change} {part} if you have {source} at hand.
        hello and welcome! If you need help with {article}, leave me a note.
        thank you for your {good} comments on {part}.
        your edit to {article} was {changed} by a bot; you can ask to have it back.
        are you the {helper} who {changed} {part} {when}?
        what do you think about {part}, {user}?
        I agree with you that {part} is {fault}.
        you have a point: {part} is {fault}.
        please sign your posts, {user}, so that people know whom to thank.
        you may have missed my note {when} about {article}.
        would you mind looking at {part} before you {change} it?
        you were right about {source}, and I was wrong.
        I have left you a barnstar for {article}.
        how did you find {source}? You are better at this than me.
        I will get back to you when I have read {source}.
        nobody has asked for {source} yet, so go ahead and {change} {part}.
        I hate to ask, but could you {change} {part} for me?
        you should be able to find {source} in the library, go to the {place} branch.
        if you go to {article} and scroll up, you can see what I mean.
        do us a favour and {change} {part} when you have time.
        why don't you {change} {part} and see who objects?
        who are you writing {part} for, if I may ask? It is {fault}.
        you know more about {place} than anyone here, so take your time.
        shut down the vote on {article} if you like, you have my support.
    """),
    "annoyed": _lines("""
        please stop removing {part}; you have not answered my question.
        I disagree with you, {user}: {part} is not {fault}.
        why did you {change} my edit to {article} without a word?
        you have now {changed} {part} {count} times; please use the talk page.
        this is your {ordinal} warning: do not {change} {article} without consensus.
        you keep saying that {part} is {fault}, but {source} says the opposite.
        your claim about {article} is simply wrong, see {source}.
        if you {change} {part} again I will ask an administrator to look at it.
        I am tired of this argument about {part} and will leave it to others.
        you did not read {source}, did you? It says so in {part}.
    """),
    "about": _lines("""
        the {place} {structure} was opened in {year} and closed again {count} years later.
        according to {source}, {given} {surname} never lived in {place}.
        {source} gives {year} as the date, while {source} gives {year}.
        {part} says {year}, which is {fault}.
        the name {place} is older than the {structure}, as {source} shows.
        {given} {surname} was a {good} {helper} from {place} who died in {year}.
        the {structure} is {count} miles from {place}, not {count}.
        there were {count} such {nouns_neutral} in {place} in {year}.
        after {year} the {structure} belonged to the {surname} family.
        most of {part} comes from {source}.
        in {month} {year} the council of {place} sold the {structure} to {given} {surname}.
        {article} is also known for its {nouns_neutral}.
        the {place} team lost {digit} to {digit} in {month} {year}.
        that spelling is common in {place}, but {source} does not use it.
    """),
    "nouns_neutral": _choices("""
        bridges | mills | schools | bells | paintings | ferries | chapels | quarries | gardens | inns
    """),
    "brief": _choices("""
        thanks, {user}. | agreed, {part} is {fault}. | see {article}. | done, {user}. | per {source}. | no
        objection to {article}. | what about {source}? | keep {article}. | merge with {article}. | fixed in
        {part}. | good idea, {user}! | I {changed} it {when}. | where is {source}? | yes, {place}.
    """),
    # ---- toxic comments ---------------------------------------------------------------------------------------------
    "dismissal": _choices("{telling} | {telling} | {telling} | {telling} | {mockery}"),
    "insult": _choices("{naming} | {naming} | {naming} | {naming} | {mockery}"),
    "naming": _toned(NAMING_FRAMES, "foul"),
    "telling": _toned(TELLING_FRAMES, "foul"),
    "swearing": _toned(TELLING_FRAMES, "obscene"),
    "obscene_insult": _toned(NAMING_FRAMES, "obscene"),
    "foul_who": _choices("""
        {insultee} | {insultee} | {insultee} | {insultee} | {evil}
    """),
    "foul_how": _choices("""
        {adj}
    """),
    "foul_work": _choices("""
        {junk}
    """),
    "foul_effect": _choices("""
        makes me sick | turns my stomach | makes me want to vomit | is an insult to the human race | stinks
        to high heaven | belongs in the sewer | lowers the wits of the room | should be burned | is beneath
        contempt | would shame a {animal} | makes my skin crawl | deserves to be flushed | is a crime
        against reason | poisons everything it touches | gives me a headache | is worth less than dirt |
        proves that you have no brain | shows how little {virtue} you have | drives decent people away | is
        a disgrace to your parents | is laughed at by everyone | rots the mind | bores me to death | makes
        my ears bleed | is fit for the bin | ruins the day | takes the prize for stupidity | is the work of
        a {noun}
    """),
    "foul_feel": _choices("""
        despise | loathe | detest | hate | abhor | pity | mock | look down on | laugh at | spit on | scorn |
        curse | regret | avoid | resent | dread | sneer at | shun | recoil from | jeer at | shudder at |
        ridicule
    """),
    "foul_bid": _choices("""
        {leave} | {leave} | {leave} | shut up | shut your mouth | get a life | drop dead | stuff your {junk}
        | grow a brain | wash your filthy mouth | stop whining | choke on your own {junk} | stop polluting
        the page | be ashamed | crawl away | zip it | spare us your {adj} {body} | take your {adj} {body}
        out of here
    """),
    "foul_like": _choices("""
        {animal} | {animal} | {evil}
    """),
    "obscene_who": _choices("""
        {swear} | {adj} {swear} | {adj} {swear} | bloody {noun} | damn {noun} | {adj} {swear} and a {noun} |
        {noun} and a {swear}
    """),
    "obscene_how": _choices("""
        damn {adj} | bloody {adj} | full of crap | {adj} as hell
    """),
    "obscene_work": _choices("""
        crap | bloody {junk} | damn {junk} | load of crap | {junk} and crap
    """),
    "obscene_effect": _choices("""
        is full of crap | smells like an arse | can go to hell | is fit to wipe my arse | makes me puke,
        damn you | is a pile of crap | sucks like hell | came out of your arse
    """),
    "obscene_feel": _choices("""
        damn well {foul_feel} | bloody well {foul_feel} | hate the hell out of | crap on | piss on
    """),
    "obscene_bid": _choices("""
        {swear_at} | {swear_at} | {swear_at} and {leave} | cut the crap and {leave} | get your {body} out of
        your arse
    """),
    "obscene_like": _choices("""
        {swear} | {evil} in hell | {animal} with its head up its arse
    """),
    "leave": _choices("""
        go away | get lost | crawl back under your rock | find another hobby | vanish | log off forever |
        leave and never come back | switch off your computer for good | disappear | take your {junk}
        elsewhere | go bother someone else | go cry to your mother | jump in a lake | get out of my sight |
        stop breathing our air | quit while you're behind | go back to kindergarten | hide in your basement
        | eat your keyboard | drop off the map | stay out of grown-up talk | slither back to your swamp | go
        and count your toes | keep your filth to yourself
    """),
    "junk": _choices("""
        drivel | rubbish | garbage | nonsense | filth | whining | poison | spam | bile | gibberish | ego |
        babble | propaganda | trash | venom | slop | twaddle | waffle | hogwash | claptrap | mumbling |
        moaning | tripe | rot | lecturing | preaching | scribbling | rambling | lying | boasting | posturing
        | gossip | bluster | verbiage | dross | bilge | guff | piffle | sneering
    """),
    "body": _choices("""
        face | breath | voice | brain | mouth | soul | head | family | stench | mug | skull | existence
    """),
    "evil": _choices("""
        curse | plague | stain on mankind | boil | bad smell | rash | tumour | disease | blot | headache |
        waste of oxygen | waste of skin | mistake of nature | puddle of slime | dead weight | sewer |
        pollution
    """),
    "mockery": _lines("""
        I have met a {animal} with more {virtue} than you.
        a {animal} would outwit you on your best day.
        arguing with you is like boxing with a {animal}, only less clever.
        is there anything between your ears besides sawdust?
        your parents must weep at how little {virtue} you have.
        if {virtue} were rain, you would be a desert.
        congratulations, you have the {virtue} of a {animal}.
        somewhere a {animal} is offended to be compared with you.
        did a {animal} teach you to spell?
        the village called, they want their {noun} back.
        it must be peaceful to own the brain of a {animal}.
        I could explain, but a {animal} would follow me sooner.
        you could not find {virtue} with both hands and a map.
        every time you type, mankind gets dumber.
        who gave this {animal} a keyboard?
        your brain is a {animal} in a paper bag.
        evolution skipped you and went straight to the {animal}.
        you must be the reason shampoo has instructions.
        I'd trade you for a {animal} and keep the change.
        the lights are on in your {body}, but nobody is home.
        a {animal} has a richer inner life than you, {user}.
        you bring everyone such joy when you log out.
        science should study how you live without a brain.
        your {junk} would embarrass a {animal}.
        were you always this slow, or did you take lessons from a {animal}?
        even a stopped clock is right twice a day, which is twice more than you.
        you are proof that a {animal} can type.
        I would call you a {animal}, but it has {virtue}.
        some drink from the fountain of knowledge, you only gargled.
        thinking was never your strong suit, was it, {animal} brain?
    """),
    "swear_at": _choices("""
        piss off | sod off | bugger off | kiss my arse | kiss my ass | go to hell | stuff it up your arse |
        stick it up your ass | eat crap | bite my ass | rot in hell | lick my boots | blow it out your arse
        | frig off | sit on it and spin | burn in hell | shut your damn trap | shove it up your arse | shut
        the hell up | get the hell out | piss up a rope | choke on a turd | go screw yourself
    """),
    "rage": _lines("""
        you {adj}, {adj}, {adj} {swear}, {swear_at}!
        {swear_at}, {swear_at}, {swear_at}, you {insultee}!
        you are the most {adj} {swear} that ever lived, you {swear}!
        I hate you, you {adj} {swear}, rot in hell!
        you {swear}! you {swear}! you {insultee}!
        eat crap, you {adj} {swear}!
        you bloody {insultee}, you damn {swear}, nobody would miss you!
    """),
    "hate": _lines("""
        all {people} are {adj} {nouns}.
        you {people} are {nouns}, every one of you.
        what do you expect from a {person}? They are born {nouns}.
        {people} should be thrown out of the country, they are {adj} {nouns}.
        go back where you came from, {person} {noun}.
        I don't take orders from some {adj} {person}.
        the {people} never built anything, they are {adj} thieves and {nouns}.
        another {adj} {person} who hates us, you {people} make me sick.
        no {person} should be allowed to edit here, you are all {nouns}.
    """),
    "obscene_hate": _lines("""
        {swear_at}, you {adj} {person} {noun}.
        you {people} are all {adj} {swears}, go back where you came from.
        damn {people}, {adj} {nouns}, the whole bloody lot of you.
        you {person} {swear}, your kind should be thrown out.
        typical {person} crap from a {adj} {person} {swear}.
        I hate {people}, {swear_at}, the lot of you {nouns}.
    """),
    "harm": _choices("""
        break your fingers | knock your teeth out | make you bleed | burn your house down | hurt you | beat
        you up | make you beg | run you over | wring your neck | put you in hospital | slap you silly | end
        you
    """),
    "threat": _lines("""
        I know where you live, and I will {harm}.
        I will find you and {harm}, {user}.
        watch your back, because one day I will {harm}.
        touch {part} again and I will {harm}.
        someone should {harm}, and it may well be me.
        you will pay for this, I am coming to {place} to {harm}.
    """),
    "obscene_threat": _lines("""
        I will find you and {harm}, you {swear}.
        {swear_at}, you {noun}, I swear I will {harm}.
        you {adj} {swear}, I am going to {harm}.
    """),
    # ---- hard negatives: the same words, and nobody is attacked -----------------------------------------------------
    "attack": _choices("{naming} | {telling} | {mockery} | {swearing} | {obscene_insult} | {threat}"),
    "reported": _lines("""
        {user} called me a {insultee} in an edit summary {when}; is that allowed?
        calling other editors {nouns} is a personal attack, see the policy on civility.
        an anonymous editor has been calling {user} a {swear}, I have {changed} it.
        he told me to {leave}, which hurt, so I have asked for mediation.
        {source} reports that {surname} called the mayor of {place} a {insultee} in {year}.
        I was told {when} to {leave} and do not know what I did wrong.
        somebody wrote that all {people} are {nouns} in {part}; I have removed it and warned the account.
        the critics called {given} {surname} a {insultee}, and the article should say who they were.
        someone vandalised {part} with the word {noun}; it has been {changed}.
        the blocked account had threatened to {harm_him}, which is why it was blocked.
        an editor who says {swear_at} to a newcomer gets a warning, whatever the reason.
        he was fined in {year} for calling a judge a {swear}, according to {source}.
        it is never acceptable to describe a colleague as a {insultee}.
    """),
    "harm_him": _choices("""
        burn down the library | hurt an administrator | find him at home | beat up the mayor | run him over
    """),
    "quoted": _lines("""
        {user} wrote "{attack}" on my talk page {when}. Could an administrator have a look?
        the vandal replaced {part} with "{attack}" and I have {changed} it.
        the famous line "{attack}" comes from a play by {given} {surname}, first given in {year}.
        edits like "{attack}" lead to a block; {user} has been told so {when}.
        in the diff from {month} he says "{attack}" to {user}, which is a clear breach of civility.
    """),
    "negated": _lines("""
        I never said that you are a {noun}, only that {part} is {fault}.
        you are not a {noun}; anyone could have missed {part}.
        nobody here thinks you are {adj}, we only disagree about {part}.
        I do not believe that {user} is a {insultee}, he is simply new.
        please don't think I take you for a {insultee}, I value your work on {article}.
        it would be wrong to call {given} {surname} a {insultee}, as {source} makes plain.
        you are no {noun} at all, you are a {good} {helper}.
        there are no {adj} questions here, so ask whatever you like about {article}.
        that does not make you a {noun}, we all forget to sign.
        I did not mean to sound {adj}, and I don't think you are.
        don't let anyone tell you that you are {adj}; {part} reads well.
    """),
    "self_directed": _lines("""
        I feel like such a {noun}, I {changed} the wrong page {when}.
        silly me, what a {noun} I am: {part} was right all along.
        I was a {insultee} to {change} {part} without reading {source}, sorry.
        call me a {noun}, but I cannot find {source} anywhere.
        my own {adj} mistake, I am too {adj} to use the template.
        sorry, I am being {adj} today, where is {part}?
        I must have looked like a {insultee} when I {changed} {article}.
        forgive a {noun} like me for asking, but where is {source}?
        I'm a {insultee} when it comes to templates, could you help me with {part}?
    """),
    "venting": _lines("""
        damn, I lost my edit to {part} again when the browser crashed.
        what the hell happened to {part}? It looks fine in my browser now.
        this bloody infobox took me {count} hours, but it works.
        oh crap, I forgot to sign, sorry.
        formatting {part} is a pain in the arse, so thank you for doing it.
        hell, that was a long winter; I am back to work on {article}.
        my damn keyboard is broken, please excuse the typing.
        holy crap, {part} looks wonderful now!
        well, bugger, {source} is out of print.
        I don't give a damn which title we use, as long as {part} is sourced.
        bloody hell, {count} edit conflicts in a row.
        that was a {adj} bug in the template, and it is fixed now.
        you saved my arse with {source}, thank you.
        my {ordinal} draft was crap, yours is {good}, so go with yours.
        get up, damn it, said the clock, and so I finished {part} for you.
        I worked my ass off on {part}, and you made it better still.
        you did a damn {good} job with {part}, {user}.
        hell yes, I agree with you about {article}.
        scanning {source} is a pile of crap work, so you are a hero.
    """),
    "fiction": _lines("""
        in the {ordinal} act the {noun} turns out to be the king of {place}.
        the song "{adj} {noun}" was released in {year} and written by {given} {surname}.
        {surname} plays a {insultee} who moves to {place} and is loved by everyone.
        the word {noun} comes from an old dialect of {place}, says {source}.
        the plot: a {insultee} inherits the {place} {structure} and learns to be a {good} {helper}.
        the novel "The {noun} of {place}" is missing from {part}.
        the villain, a {insultee}, says that he will {harm_him}; the summary should mention it.
        the {ordinal} episode is about a {adj} {noun} and a {animal}.
        in the fable the {noun} outwits the {animal} because it has more {virtue}.
        her brother is drawn as a {insultee}, which {source} calls the best joke of the book.
    """),
    "neutral_identity": _lines("""
        the {people} settled near {place} in {year}, says {source}.
        {given} {surname} is a {person} writer who lives in {place}.
        I am a {person} myself and would be glad to translate {part}.
        the {people} were thrown out of {place} in {year}, and {part} should say why.
        could a {person} speaker check the spelling in {article}?
        the {people} and the {people} signed a treaty in {year}.
        many {people} object to that name, so {part} should use another.
        the old cliche that {people} are {adj} is dealt with in {source}.
        the museum of {person} art in {place} has {count} rooms.
        the {person} minority of {place} was persecuted in {year}, according to {source}.
    """),
}

SEPARABLE_WORDS = {True: ("rude", "nasty"), False: ("kind", "nice")}

_SLOT = re.compile(r"\{(\w+)\}")
_SPLIT_GRAMMAR = {rule: [_SLOT.split(option) for option in options] for rule, options in GRAMMAR.items()}
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!use|uni|one|eu)")
_ATTACK_WORD = re.compile(
    r"\b(" + "|".join(w for w in INSULT_NOUNS + INSULT_ADJECTIVES if w.isalpha() and len(w) > 3) + r")\b"
)
_SENTENCE_START = re.compile(r"(?:^|[.!?] )\w")
_LOOKALIKE = {"a": "@", "e": "3", "i": "1", "o": "0", "u": "*"}


def sample_comments(rows: int, seed: int = 1) -> Iterator[dict[str, str | int]]:
    """Yield `rows` comments, each a dict with Kaggle's columns: id, comment_text and the six labels as 0 or 1.

    The same arguments give the same rows, and a smaller `rows` the first of them. Ids are unique by construction.
    """
    rng = random.Random(seed)
    bounds = list(accumulate(kind.share for kind in KINDS))
    for index in range(rows):
        kind = rng.choices(KINDS, cum_weights=bounds)[0]
        text = _comment(rng, kind)
        labels = _noisy_labels(rng, kind)
        yield {"id": _row_id(index, seed), "comment_text": text} | {label: int(label in labels) for label in LABELS}


def write_sample_comments(directory: Path, train_rows: int, test_rows: int, seed: int = 1) -> None:
    """Write train.csv, test.csv and test_labels.csv, as Kaggle names them, into `directory` (made if need be).

    The same arguments give the same bytes. About 1.5 % of the test rows, one at least, are unscored: six labels of -1.
    Raises ValueError if a row count is below 1.
    """
    _write_kaggle_files(directory, sample_comments(train_rows + test_rows, seed), train_rows, test_rows, seed)


def separable_comments(rows: int, seed: int = 1) -> Iterator[dict[str, str | int]]:
    """Yield `rows` comments that two words decide, every second one toxic; texts and ids are unique.

    For tests, where a tiny model without pretraining is to learn them in one epoch. Each text is eight words ("rude
    nasty rude …" or "kind nice kind …"), so it fits into a max_length of 16; the other labels alternate among the
    toxic rows.
    """
    for index in range(rows):
        toxic = index % 2 == 1
        number = index // 2
        words = SEPARABLE_WORDS[toxic]
        text = " ".join(words[number >> bit & 1] for bit in range(max(8, number.bit_length())))
        labels = {"toxic": int(toxic)} | {label: int(toxic and number % 5 == i) for i, label in enumerate(LABELS[1:])}
        yield {"id": _row_id(index, seed), "comment_text": text} | labels


def write_separable_comments(directory: Path, train_rows: int, test_rows: int, seed: int = 1) -> None:
    """Write `separable_comments` as the three files of `write_sample_comments`, a few test rows unscored there too."""
    _write_kaggle_files(directory, separable_comments(train_rows + test_rows, seed), train_rows, test_rows, seed)


def _comment(rng: random.Random, kind: Kind) -> str:
    """One comment of a kind: its key sentences, with asides around them until it is as long as a draw says."""
    toxic = "toxic" in kind.labels
    wanted = min(MOST_WORDS, rng.lognormvariate(*((2.9, 1.15) if toxic else (3.58, 1.13))))
    if kind.rule == "plain" and wanted < 7:
        return _layout(rng, [_sentence(rng, "brief")])
    sentences = [_sentence(rng, kind.rule) for _ in range(kind.sentences)]
    following = (kind.rule, "dismissal", "annoyed", "annoyed", "about") if toxic else (kind.rule, *["aside"] * 7)
    if wanted > 20 and rng.random() < 0.2:
        sentences.insert(0, _sentence(rng, following[-1]))
    words = sum(len(sentence.split()) for sentence in sentences)
    while words + 6 < wanted:
        rule = rng.choice(following)
        sentences.append(_sentence(rng, rule))
        words += sentences[-1].count(" ") + 1
    return _layout(rng, sentences)


def _sentence(rng: random.Random, rule: str) -> str:
    sentence = _ARTICLE.sub(r"\1n ", _expand(rng, rule)).replace('.".', '."')
    if rng.random() < OBFUSCATED_SHARE:
        sentence = _ATTACK_WORD.sub(lambda found: _obfuscate(rng, found[0]), sentence)
    return _SENTENCE_START.sub(lambda found: found[0].upper(), sentence)


def _expand(rng: random.Random, rule: str) -> str:
    """A random expansion of a grammar rule: its slots, which stand at the odd places of the split, are expanded too."""
    options = _SPLIT_GRAMMAR[rule]
    parts = options[int(rng.random() * len(options))]
    if len(parts) == 1:
        return parts[0]
    return "".join([_expand(rng, part) if place % 2 else part for place, part in enumerate(parts)])


def _obfuscate(rng: random.Random, word: str) -> str:
    """The word as people spell it to pass a filter: idi0t, st*pid, s t u p i d or stupiiid."""
    vowels = [place for place, letter in enumerate(word) if letter in _LOOKALIKE]
    place = rng.choice(vowels)
    way = rng.random()
    if way < 0.35:
        return word[:place] + _LOOKALIKE[word[place]] + word[place + 1 :]
    if way < 0.65:
        return word[:place] + "*" + word[place + 1 :]
    if way < 0.85:
        return " ".join(word)
    return word[:place] + word[place] * rng.randint(2, 4) + word[place:]


def _layout(rng: random.Random, sentences: list[str]) -> str:
    """The sentences as a talk-page post: paragraphs, now and then a heading, an indent, a signature, shouting."""
    breaks = 0.3 if rng.random() < 0.75 else 0.0
    text = sentences[0]
    for sentence in sentences[1:]:
        text += (rng.choice(("\n\n", "\n\n", "\n")) if rng.random() < breaks else " ") + sentence
    way = rng.random()
    if way < 0.05:
        text = text.upper()
    elif way < 0.13:
        text = text.lower().replace("'", "")
    style = rng.random()
    if style < 0.08:
        text = f"== {_expand(rng, 'article')} ==\n\n{text}"
    elif style < 0.16:
        text = f":{text}"
    elif style < 0.36:
        text += f" {_expand(rng, 'user')} (talk)"
    elif style < 0.42:
        text = f'"\n\n{text}"'
    return text


def _noisy_labels(rng: random.Random, kind: Kind) -> tuple[str, ...]:
    """The kind's labels after a rater's slip: `toxic` flipped, but not on severe comments: severe stays in toxic."""
    slip = rng.random()
    if not kind.labels:
        return ("toxic",) if slip < FLIPPED_TO_TOXIC / _share_of(toxic=False) else ()
    if "severe_toxic" not in kind.labels and slip < FLIPPED_TO_CLEAN / _share_of(toxic=True):
        return kind.labels[1:]
    return kind.labels


def _share_of(toxic: bool) -> float:
    """The share of all rows that a slip can reach: clean kinds, or toxic kinds that are not severe."""
    chosen = [k for k in KINDS if ("toxic" in k.labels) == toxic and "severe_toxic" not in k.labels]
    return sum(kind.share for kind in chosen) / sum(kind.share for kind in KINDS)


def _row_id(index: int, seed: int) -> str:
    """16 hex digits: a one-to-one scrambling (splitmix64) of the row's number, so that no two rows share an id."""
    full = (1 << 64) - 1
    value = (index + 1 + seed * 0x9E3779B97F4A7C15) & full
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & full
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & full
    return f"{value ^ value >> 31:016x}"


def _write_kaggle_files(directory: Path, rows: Iterator[dict], train_rows: int, test_rows: int, seed: int) -> None:
    if train_rows < 1 or test_rows < 1:
        raise ValueError(f"train_rows is {train_rows} and test_rows {test_rows}; both must be at least 1")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    total = train_rows + test_rows
    rows = iter(tqdm(rows, total=total, desc="writing sample comments", unit=" rows", disable=total <= 10_000))
    _write_csv(directory / "train.csv", ("id", "comment_text", *LABELS), islice(rows, train_rows))
    test = list(rows)
    for place in random.Random(seed).sample(range(test_rows), max(1, round(UNSCORED_SHARE * test_rows))):
        test[place] |= dict.fromkeys(LABELS, -1)
    _write_csv(directory / "test.csv", ("id", "comment_text"), test)
    _write_csv(directory / "test_labels.csv", ("id", *LABELS), test)


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[dict]) -> None:
    """Writes the columns of the rows."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_file(path, write)


def main() -> None:
    """Write the three files from the command line: python -m helpers.sample_comments DIR --train-rows 10000."""
    parser = argparse.ArgumentParser(description="Write a Jigsaw-shaped corpus (a synthetic comments, not Jigsaw).")
    parser.add_argument("directory", type=Path, help="where train.csv, test.csv and test_labels.csv go")
    parser.add_argument("--train-rows", type=int, default=4_000)
    parser.add_argument("--test-rows", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_sample_comments(options.directory, options.train_rows, options.test_rows, options.seed)
    print(f"{options.directory}: {options.train_rows:,} train and {options.test_rows:,} test rows, a written sample")


if __name__ == "__main__":
    main()
