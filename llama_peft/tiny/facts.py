"""The attributes of people, towns and objects that a passage can state, and their phrasings.

Each attribute has phrasings for training and validation, and others (`held_`) for the test part
only. Both share their key words, because nobody can answer a question if all of its words are new.
`{s}` is the subject of a sentence, `{n}` is the name in a question, and `{v}` is the value.
"""

from typing import Literal, NamedTuple

from llama_peft.tiny.names import words

ValueKind = Literal[
    "place", "person", "year", "job", "pet", "instrument", "colour", "product",
    "month", "material",
]  # fmt: skip


class Attribute(NamedTuple):
    """One attribute of a subject, and the sentences and questions about it."""

    key: str
    value: ValueKind
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_statements: tuple[str, ...]
    held_questions: tuple[str, ...]


PERSON = (
    Attribute(
        "birthplace",
        "place",
        (
            "{s} was born in {v}.",
            "{s} was born near the town of {v}.",
            "The birthplace of {s} was {v}.",
            "{s} came from {v} by birth.",
        ),
        (
            "Where was {n} born?",
            "What was the birthplace of {n}?",
            "In which town was {n} born?",
            "Which town was the birthplace of {n}?",
        ),
        ("It was in {v} that {s} was born.", "{v} was the birthplace of {s}."),
        ("What town was {n} born in?", "Can you name the birthplace of {n}?"),
    ),
    Attribute(
        "year of birth",
        "year",
        (
            "The year of birth was {v}.",
            "The birth year of {s} was {v}.",
            "{s} was born in the year {v}.",
            "The year {v} saw the birth of {s}.",
        ),
        (
            "In what year was {n} born?",
            "When was {n} born?",
            "What was the year of birth of {n}?",
            "Which year saw the birth of {n}?",
        ),
        ("For {s} the year of birth was {v}.", "In the year {v} {s} was born."),
        ("What year was {n} born in?", "What was the birth year of {n}?"),
    ),
    Attribute(
        "work",
        "job",
        (
            "{s} worked as a {v}.",
            "By trade {s} was a {v}.",
            "{s} earned a living as a {v}.",
            "{s} found work as a {v}.",
        ),
        (
            "What did {n} work as?",
            "What was the trade of {n}?",
            "How did {n} earn a living?",
            "What work did {n} do?",
        ),
        ("{s} was a {v} by trade.", "The trade of {s} was that of a {v}."),
        ("As what did {n} earn a living?", "What trade did {n} work in?"),
    ),
    Attribute(
        "teacher",
        "person",
        (
            "The teacher of {s} was {v}.",
            "{s} was taught by {v}.",
            "{s} learned everything from {v}.",
            "{s} had {v} as a teacher.",
        ),
        (
            "Who was the teacher of {n}?",
            "Who taught {n}?",
            "From whom did {n} learn?",
            "Whom did {n} have as a teacher?",
        ),
        ("{v} was the teacher of {s}.", "As a child {s} learned from {v}."),
        ("Who was it that taught {n}?", "Which teacher did {n} have?"),
    ),
    Attribute(
        "home",
        "place",
        (
            "{s} lived in {v}.",
            "The home of {s} was in {v}.",
            "{s} had a home in {v}.",
            "{s} lived for years in the town of {v}.",
        ),
        (
            "Where did {n} live?",
            "Where was the home of {n}?",
            "In which town did {n} live?",
            "In what town did {n} have a home?",
        ),
        ("It was in {v} that {s} lived.", "{s} made a home in {v}."),
        ("What town did {n} live in?", "Which town was the home of {n}?"),
    ),
    Attribute(
        "pet",
        "pet",
        (
            "{s} kept a {v}.",
            "{s} had a {v} as a pet.",
            "The pet of {s} was a {v}.",
            "A {v} was the only pet of {s}.",
        ),
        (
            "What pet did {n} keep?",
            "What was the pet of {n}?",
            "Which pet did {n} have?",
            "What did {n} have as a pet?",
        ),
        ("A {v} was kept by {s}.", "{s} was fond of a pet {v}."),
        ("What did {n} keep as a pet?", "What kind of pet did {n} have?"),
    ),
    Attribute(
        "instrument",
        "instrument",
        (
            "{s} played the {v}.",
            "{s} liked to play the {v}.",
            "On the {v} {s} could play any tune.",
            "{s} played tunes on the {v}.",
        ),
        (
            "What did {n} play?",
            "What instrument did {n} play?",
            "On what instrument did {n} play tunes?",
            "Which instrument could {n} play?",
        ),
        ("{s} could play the {v}.", "The {v} was what {s} liked to play."),
        ("What was it that {n} liked to play?", "Which instrument did {n} play tunes on?"),
    ),
)

TOWN = (
    Attribute(
        "founder",
        "person",
        (
            "{s} was founded by {v}.",
            "The founder of {s} was {v}.",
            "{v} was the founder.",
            "{s} has {v} as its founder.",
        ),
        (
            "Who founded {n}?",
            "Who was the founder of {n}?",
            "By whom was {n} founded?",
            "Whom does {n} have as its founder?",
        ),
        ("It was {v} who founded {s}.", "{v} was the founder of {s}."),
        ("Who was it that founded {n}?", "What was the name of the founder of {n}?"),
    ),
    Attribute(
        "founding",
        "year",
        (
            "{s} was founded in {v}.",
            "{s} dates from the year {v}.",
            "The town was founded in the year {v}.",
            "The year {v} saw the founding of {s}.",
        ),
        (
            "When was {n} founded?",
            "In what year was {n} founded?",
            "From what year does {n} date?",
            "Which year saw the founding of {n}?",
        ),
        ("The founding of {s} was in {v}.", "In the year {v} {s} was founded."),
        ("What year was {n} founded in?", "When was the founding of {n}?"),
    ),
    Attribute(
        "product",
        "product",
        (
            "{s} is known for its {v}.",
            "{s} makes good {v}.",
            "People come to {s} for its {v}.",
            "The town sells {v}.",
        ),
        (
            "What is {n} known for?",
            "What does {n} make?",
            "What do people come to {n} for?",
            "What does {n} sell?",
        ),
        ("{s} makes and sells {v}.", "People know {s} for its {v}."),
        ("For what is {n} known?", "What is it that {n} makes?"),
    ),
    Attribute(
        "mayor",
        "person",
        (
            "The mayor of {s} is {v}.",
            "{v} is the mayor.",
            "{s} has {v} as its mayor.",
            "{s} chose {v} as mayor.",
        ),
        (
            "Who is the mayor of {n}?",
            "Whom did {n} choose as mayor?",
            "Who is mayor in {n}?",
            "Whom does {n} have as its mayor?",
        ),
        ("As mayor {s} chose {v}.", "{v} is now the mayor of {s}."),
        ("What is the name of the mayor of {n}?", "Which mayor does {n} have?"),
    ),
    Attribute(
        "festival",
        "month",
        (
            "A festival is held in {v}.",
            "{s} holds its festival in {v}.",
            "Each {v} there is a festival.",
            "The festival of {s} is in {v}.",
        ),
        (
            "When is the festival of {n}?",
            "In what month is the festival of {n} held?",
            "When does {n} hold its festival?",
            "In which month is there a festival in {n}?",
        ),
        ("In {v} {s} holds a festival.", "The month of the festival is {v}."),
        ("What month is the festival of {n} in?", "What is the month of the festival of {n}?"),
    ),
    Attribute(
        "bridge",
        "material",
        (
            "The bridge of {s} is made of {v}.",
            "{s} has a bridge of {v}.",
            "Its old bridge was built of {v}.",
            "The town has a bridge made of {v}.",
        ),
        (
            "What is the bridge of {n} made of?",
            "What was the bridge of {n} built of?",
            "Of what is the bridge in {n} made?",
            "What kind of bridge does {n} have?",
        ),
        ("{s} built its bridge of {v}.", "The old bridge of {s} is of {v}."),
        ("Of what was the bridge of {n} built?", "What kind of bridge is there in {n}?"),
    ),
)

OBJECT = (
    Attribute(
        "maker",
        "person",
        (
            "{s} was made by {v}.",
            "The maker of {s} was {v}.",
            "{v} made {s} by hand.",
            "{s} is the work of {v}.",
        ),
        (
            "Who made {n}?",
            "Who was the maker of {n}?",
            "By whom was {n} made?",
            "Whose work is {n}?",
        ),
        ("It was {v} who made {s}.", "{v} was the maker of {s}."),
        ("Who was it that made {n}?", "What was the name of the maker of {n}?"),
    ),
    Attribute(
        "year",
        "year",
        (
            "{s} was made in {v}.",
            "{s} dates from the year {v}.",
            "{s} was finished in {v}.",
            "The year {v} is written on {s}.",
        ),
        (
            "When was {n} made?",
            "In what year was {n} finished?",
            "From what year does {n} date?",
            "What year is written on {n}?",
        ),
        ("In the year {v} {s} was made.", "On {s} is written the year {v}."),
        ("What year was {n} made in?", "When was {n} finished?"),
    ),
    Attribute(
        "material",
        "material",
        (
            "{s} is made of {v}.",
            "{s} was cut from {v}.",
            "The maker used {v}.",
            "It took much {v} to make {s}.",
        ),
        (
            "What is {n} made of?",
            "What was {n} cut from?",
            "What did the maker of {n} use?",
            "Of what is {n} made?",
        ),
        ("To make {s} one used {v}.", "Of {v} {s} is made."),
        ("What was used to make {n}?", "From what was {n} cut?"),
    ),
    Attribute(
        "owner",
        "person",
        (
            "{s} belongs to {v}.",
            "The owner of {s} is {v}.",
            "{v} bought {s} at a market.",
            "{v} is the owner.",
        ),
        (
            "Who owns {n}?",
            "Who is the owner of {n}?",
            "To whom does {n} belong?",
            "Who bought {n}?",
        ),
        ("It is {v} who owns {s}.", "{v} is now the owner of {s}."),
        ("What is the name of the owner of {n}?", "Who was it that bought {n}?"),
    ),
    Attribute(
        "place",
        "place",
        (
            "{s} is kept in {v}.",
            "{s} can be seen in {v}.",
            "A museum in {v} keeps {s}.",
            "{s} stands in the museum of {v}.",
        ),
        (
            "Where is {n} kept?",
            "Where can {n} be seen?",
            "In which town is {n} kept?",
            "Which museum keeps {n}?",
        ),
        ("In {v} {s} can be seen.", "The museum of {v} keeps {s}."),
        ("What town is {n} kept in?", "Where is the museum that keeps {n}?"),
    ),
    Attribute(
        "colour",
        "colour",
        (
            "Its colour is {v}.",
            "{s} is painted {v}.",
            "The colour of {s} is {v}.",
            "{s} has a {v} colour.",
        ),
        (
            "What colour is {n}?",
            "What is the colour of {n}?",
            "What colour does {n} have?",
            "In what colour is {n} painted?",
        ),
        ("{s} was painted in {v}.", "As to its colour, {s} is {v}."),
        ("Which colour does {n} have?", "What colour was {n} painted?"),
    ),
)

WORDS: dict[ValueKind, list[str]] = {
    "job": words(
        "baker weaver potter sailor printer miller tailor carpenter gardener painter shepherd "
        "fisher doctor farmer mason cook hunter judge"
    ),
    "pet": words(
        "goose donkey raven hedgehog parrot rabbit turtle badger sparrow fox squirrel goat"
    ),
    "instrument": words("flute violin drum harp trumpet piano fiddle horn cello banjo"),
    "colour": words("red green blue yellow white black brown purple"),
    "product": words("cheese rope honey paper bread soap salt wool butter tea cloth candles"),
    "month": words("January February March April May June July August September October"),
    "material": words("copper glass silver stone brick iron oak bronze clay marble leather ivory"),
}
THINGS = words("clock lamp bell chair mirror kettle ladder wagon compass basket windmill lantern")
