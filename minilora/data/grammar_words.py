"""The words that generated tasks are about, each in one split only.

    words = split_words("held-out", seed=0)
    words.names, words.things, words.places, words.beings

A model that was trained on the one split's names and things meets others in the next: it cannot have learned them by
heart. Things have a regular plural. Words that carry a grammar (where, at least, monday) are in all splits.
"""

import random
from dataclasses import dataclass, fields

SHARES = {"train": 0.6, "validation": 0.15, "held-out": 0.25}


@dataclass(frozen=True)
class Words:
    names: list[str]
    things: list[str]
    places: list[str]
    beings: list[str]

    def all(self) -> list[str]:
        return [word for kind in fields(self) for word in getattr(self, kind.name)]

    def nouns(self) -> list[str]:
        return self.things + self.places + self.beings


_TEXTS = {
    "names": """Ada Agnes Alan Albert Alma Amir Anna Anton Arthur Astrid Basil Beatrix Ben Bertha Boris Bruno Carla
        Carmen Cecil Chen Clara Conrad Cora Dana Daniel Daphne David Dora Edgar Edith Elena Elias Elsa Emil Emma Erik
        Esther Eva Felix Fiona Flora Frank Frida George Gina Greta Gustav Hana Hannah Harold Hector Helen Henry Hugo
        Ida Igor Ines Ingrid Irene Isaac Ivan Jack Jana Jasper Joan Jonas Judith Julia Karl Kate Kenji Lars Laura Lena
        Leo Lily Linus Lucas Lucy Magda Malik Mara Marco Martha Mia Milo Mona Nadia Nina Nora Olaf Olga Oscar Otto
        Paula Pedro Petra Quentin Ralph Rita Robin Rosa Ruth Sam Sara Simon Sofia Stella Sven Tara Theo Thomas Tilda
        Tina Tom Una Ursula Vera Victor Viola Walter Wanda Willa Xenia Yara Yuri Zara Zoe""",
    "things": """anchor apron arrow axe bag ball banner barrel basket bell belt blanket boat bolt book boot bottle bowl
        brick bucket button cable camera candle carpet chain chair chisel clock cloak coat coin collar cord crown cup
        curtain desk drill drum engine feather fiddle flag flute fork guitar hammer hat helmet hook jacket jar jug
        kettle kite ladder lamp lantern mask medal mirror mitten nail needle net oar oven paddle pan pen pencil pillow
        pin pipe plate plough pot pump puzzle quilt racket radio razor ribbon ring robe rope rug saw scarf shawl shirt
        shovel skirt sled sock spoon stamp stool stove tent ticket tile towel trumpet tube vase wagon wallet wheel
        whistle""",
    "places": """airport attic avenue bakery balcony barn beach bridge cabin camp canal castle cave cellar chapel
        cinema clinic cottage court dam desert dock farm field forest fort garage garden gate glacier hall harbour hill
        hotel island kitchen lake market meadow mill mine museum office orchard palace park pier pond port quarry river
        school shop square stadium station street studio temple theatre tower tunnel valley village wharf yard zoo""",
    "beings": """actor ant artist badger baker barber bear beaver bee beetle boxer camel captain carpenter cat chemist
        clerk cook cow crab crow dancer deacon doctor dog dolphin donkey dragon driver duck eagle eel falcon farmer
        frog gardener giant goat gull hawk hen horse jackal judge king kitten lawyer lion lizard llama miner monk moth
        newt nurse otter owl painter panda parrot pilot pirate poet porter rabbit rat raven robber sailor seal singer
        snail soldier spider swan tailor tiger toad trader tutor turtle viper walrus wasp weaver whale wizard wolfhound
        worm zebra""",
}
LEXICON = Words(**{kind: text.split() for kind, text in _TEXTS.items()})


def split_words(split: str, seed: int) -> Words:
    """The words of "train", "validation" or "held-out", each kind of LEXICON shuffled and dealt out by SHARES."""
    before = sum(list(SHARES.values())[: list(SHARES).index(split)])
    chosen = {}
    for kind in fields(Words):
        words = list(getattr(LEXICON, kind.name))
        random.Random(f"{kind.name} {seed}").shuffle(words)
        start, stop = (round(len(words) * share) for share in (before, before + SHARES[split]))
        chosen[kind.name] = words[start:stop]
    return Words(**chosen)
