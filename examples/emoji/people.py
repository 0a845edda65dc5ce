"""Who is drawn by sequences: the words that a person's parts are named by.

A sequence of a person is a base, perhaps a skin tone, and perhaps, behind a joiner, an object, hair or a gender sign.
"""

from __future__ import annotations

JOINER = "\u200d"
EMOJI = "\ufe0f"
"""Asks for the coloured form of a character that has a plain one, too."""

TONES = {
    "light": "\U0001f3fb",
    "medium-light": "\U0001f3fc",
    "medium": "\U0001f3fd",
    "medium-dark": "\U0001f3fe",
    "dark": "\U0001f3ff",
}
NO_TONE = "none"
"""Of a person or a hand without one: the font's yellow."""

ADULTS = {"woman": "👩", "man": "👨", "person": "🧑"}
SIGNS = {"woman": "♀", "man": "♂"}

PROFESSIONS = {
    "⚕": "health worker",
    "🎓": "student",
    "🏫": "teacher",
    "⚖": "judge",
    "🌾": "farmer",
    "🍳": "cook",
    "🔧": "mechanic",
    "🏭": "factory worker",
    "💼": "office worker",
    "🔬": "scientist",
    "💻": "technologist",
    "🎤": "singer",
    "🎨": "artist",
    "✈": "pilot",
    "🚀": "astronaut",
    "🚒": "firefighter",
}
"""By the object behind the joiner."""

OBJECTS = {
    "🍼": "feeding baby",
    "🦯": "with white cane",
    "🦼": "in motorized wheelchair",
    "🦽": "in manual wheelchair",
}
"""What else an adult is joined with."""

HAIR = {"🦰": "red", "🦱": "curly", "🦳": "white", "🦲": "bald"}

NOUNS = {
    "👮": "police officer",
    "🕵": "detective",
    "💂": "guard",
    "👷": "construction worker",
    "🦸": "superhero",
    "🦹": "supervillain",
    "🧙": "mage",
    "🧚": "fairy",
    "🧛": "vampire",
    "🧝": "elf",
    "🧞": "genie",
    "🧟": "zombie",
}
"""Bases that a gender sign follows and whose word stands behind the gender's: "woman mage"; without one, "mage"."""

UNIFORMED = frozenset({"police officer", "detective", "guard", "construction worker"})
"""Those of the nouns that are professions."""

DOING = {
    "👳": "with turban",
    "🤵": "in tuxedo",
    "👰": "with veil",
    "🧜": "with fish tail",
    "💆": "getting massage",
    "💇": "getting haircut",
    "🚶": "walking",
    "🧍": "standing",
    "🧎": "kneeling",
    "🏃": "running",
    "🧖": "in steamy room",
    "🧗": "climbing",
    "🏌": "golfing",
    "🏄": "surfing",
    "🚣": "rowing boat",
    "🏊": "swimming",
    "⛹": "bouncing ball",
    "🏋": "lifting weights",
    "🚴": "biking",
    "🚵": "mountain biking",
    "🤸": "cartwheeling",
    "🤽": "playing water polo",
    "🤾": "playing handball",
    "🤹": "juggling",
    "🧘": "in lotus position",
    "🙍": "frowning",
    "🙎": "pouting",
    "🙅": "gesturing no",
    "🙆": "gesturing ok",
    "💁": "tipping hand",
    "🙋": "raising hand",
    "🧏": "pointing to ear",
    "🙇": "bowing",
    "🤦": "facepalming",
    "🤷": "shrugging",
    "🧔": "with beard",
}
"""Bases that a gender sign follows and whose words stand behind "woman", "man" or "person"."""

BLOND = "👱"

SINGLE = {
    "👩": ("woman", "adult", "woman"),
    "👨": ("man", "adult", "man"),
    "🧑": ("person", "adult", "person"),
    "👵": ("older woman", "older adult", "woman"),
    "👴": ("older man", "older adult", "man"),
    "🧓": ("older person", "older adult", "person"),
    "👧": ("girl", "child", ""),
    "👦": ("boy", "child", ""),
    "🧒": ("child", "child", ""),
    "👶": ("baby", "baby", ""),
    "👼": ("baby angel", "baby angel", ""),
    "👲": ("man with skullcap", "man with skullcap", ""),
    "🧕": ("woman with headscarf", "woman with headscarf", ""),
    "🤰": ("pregnant woman", "pregnant", "woman"),
    "🫃": ("pregnant man", "pregnant", "man"),
    "🫄": ("pregnant person", "pregnant", "person"),
    "🤱": ("breast-feeding woman", "breast-feeding", ""),
    "🤶": ("mother christmas", "christmas", "woman"),
    "🎅": ("father christmas", "christmas", "man"),
    "👸": ("princess", "crown", "woman"),
    "🤴": ("prince", "crown", "man"),
    "🫅": ("person with crown", "crown", "person"),
    "💃": ("woman dancing", "dancing", "woman"),
    "🕺": ("man dancing", "dancing", "man"),
    "🕴": ("levitating man in suit", "levitating", ""),
    "🥷": ("ninja", "ninja", ""),
    "🏇": ("horse racing", "horse racing", ""),
    "🏂": ("snowboarder", "snowboarder", ""),
    "🛀": ("person taking bath", "person taking bath", ""),
    "🛌": ("person in bed", "person in bed", ""),
    "👫": ("woman and man holding hands", "holding hands", ""),
    "👬": ("two men holding hands", "holding hands", ""),
    "👭": ("two women holding hands", "holding hands", ""),
    "💏": ("kiss", "kiss", ""),
    "💑": ("couple with heart", "couple with heart", ""),
    "👯": ("people with bunny ears", "people with bunny ears", ""),
    "🤼": ("wrestlers", "wrestlers", ""),
    "👪": ("family", "family", ""),
    "⛷": ("skier", "skier", ""),
    "🤺": ("fencer", "fencer", ""),
}
"""People drawn by a base alone: (name, base name, gender word)."""

FIGURES = frozenset("👤👥🫂🗣👣👀👄👅👁🎎🗽🗿🤖👹👺👻👽👾💀☠🎭🎃🧸⛄☃🧌🖼🚻🚹🚺🚼🚾♿🛂🚸🚷🚮💋🧠🫀🫁🦷🦴🌝🌞🌚🎠🎢🪆🛐")
"""Statues, ghosts, parts of a body: of these it is not asked whether they are a person."""
