"""The words that the tasks' texts are made of: plain English, each of them one token in most vocabularies.

Knows words alone. The two sets share no word: what is on a list never occurs in the running text around it.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LISTED: Final = _words("""
    acorn actor album alley amber anchor apple apron arena arrow atlas attic autumn award badge bagel baker
    bamboo banana banner barley barrel basil basket beach beacon beard berry bishop blanket blossom bonnet
    border bottle boulder bowl bracket branch brass bread brick bridge broom bubble bucket buckle bullet bundle
    burger butter button cabin cable camel camera candle canoe canvas carbon cargo carpet carrot castle cedar
    cello cement chain chalk cherry chess cigar circle clay cliff clinic clock cloth cloud clover coach cobalt
    coffee collar comet compass copper coral cork corner cotton couch cradle crater crayon cream cricket crown
    crystal curtain cushion daisy dance dawn deck denim desert desk dial diary dinner dollar dolphin door dragon
    drawer drum eagle easel elbow ember engine envelope fabric falcon fathom feather fence ferry fiddle field
    finger flag flame flask flute folder forest fossil fountain frame fruit funnel garlic garnet gate gear
    ginger glacier glass globe glove goblet grain granite grape gravel guitar hammer hamper handle harbor harp
    hazel helmet hinge honey hood hook hotel ice ink iron island ivory jacket jade jar jewel jungle kettle
    kitchen kite knife ladder lamp lantern lemon lens letter linen lion lobby locket lumber magnet mango maple
    marble market mask meadow medal melon mirror mitten motor mountain muffin mustard napkin needle nest nickel
    noodle nutmeg oak oasis ocean olive onion opal orange orbit orchid organ otter oven oyster paddle palace
    panel paper parade parcel parrot pasta pearl pebble pencil pepper piano pillow pilot pine pipe pirate planet
    plate plum pocket pony poppy porch potato prism pumpkin puzzle quartz quill quilt rabbit radar radio raisin
    ramp ranch raven ribbon rice ring robin rocket roof rope ruby saddle sail salad salmon salt satin
    saucer scarf school scooter shadow shelf shell shield ship shovel silk silver siren sketch slipper snail
    soap socket sofa spice spider spoon stamp station statue steam stereo stone storm stove straw sugar suitcase
    sunset swan sweater syrup table tailor teapot temple tent thimble thread thunder ticket tiger timber tissue
    toast tomato topaz torch towel tower tractor train trophy truck trumpet tulip tunnel turtle umbrella valley
    vase vault velvet violin volcano wagon walnut wallet walrus warden waffle water whale wheat wheel whistle
    willow window winter wizard wolf wool wrench yacht yarn yogurt zebra zipper
""")

PEOPLE: Final = _words("Anna Ben Clara David Emma Frank Grace Henry")
SAYINGS: Final = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
