"""Which class is mistaken for which: the class maps of asymmetric label noise.

Patrini et al., "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach",
CVPR 2017, section 5. These maps, and not pair-flip over all classes, reproduce the cross-entropy
row of Table 2 of Gao et al. at 40 % (about 77 % on MNIST with the two-layer MLP, against about
60 % with pair-flip), hence ``asymmetric`` means the map.
"""

# 2 → 7, 3 → 8, 5 ↔ 6, 7 → 1
_DIGITS = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}

# truck → automobile, bird → airplane, deer → horse, cat ↔ dog
_CIFAR10 = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}

CIFAR100_SUPERCLASSES: tuple[tuple[int, ...], ...] = (
    (4, 30, 55, 72, 95),  # beaver, dolphin, otter, seal, whale
    (1, 32, 67, 73, 91),  # aquarium fish, flatfish, ray, shark, trout
    (54, 62, 70, 82, 92),  # orchid, poppy, rose, sunflower, tulip
    (9, 10, 16, 28, 61),  # bottle, bowl, can, cup, plate
    (0, 51, 53, 57, 83),  # apple, mushroom, orange, pear, sweet pepper
    (22, 39, 40, 86, 87),  # clock, keyboard, lamp, telephone, television
    (5, 20, 25, 84, 94),  # bed, chair, couch, table, wardrobe
    (6, 7, 14, 18, 24),  # bee, beetle, butterfly, caterpillar, cockroach
    (3, 42, 43, 88, 97),  # bear, leopard, lion, tiger, wolf
    (12, 17, 37, 68, 76),  # bridge, castle, house, road, skyscraper
    (23, 33, 49, 60, 71),  # cloud, forest, mountain, plain, sea
    (15, 19, 21, 31, 38),  # camel, cattle, chimpanzee, elephant, kangaroo
    (34, 63, 64, 66, 75),  # fox, porcupine, possum, raccoon, skunk
    (26, 45, 77, 79, 99),  # crab, lobster, snail, spider, worm
    (2, 11, 35, 46, 98),  # baby, boy, girl, man, woman
    (27, 29, 44, 78, 93),  # crocodile, dinosaur, lizard, snake, turtle
    (36, 50, 65, 74, 80),  # hamster, mouse, rabbit, shrew, squirrel
    (47, 52, 56, 59, 96),  # maple, oak, palm, pine, willow
    (8, 13, 48, 58, 90),  # bicycle, bus, motorcycle, pickup truck, train
    (41, 69, 81, 85, 89),  # lawn mower, rocket, streetcar, tank, tractor
)
"""The fine classes of each CIFAR-100 superclass (row = coarse label), in the data set's indices."""

_CIFAR100 = {
    fine: row[(place + 1) % len(row)]
    for row in CIFAR100_SUPERCLASSES
    for place, fine in enumerate(row)
}

# data set → (its number of classes, true class → class it is mistaken for)
_CLASS_MAPS: dict[str, tuple[int, dict[int, int]]] = {
    "mnist": (10, _DIGITS),
    "digits": (10, _DIGITS),
    "kmnist": (10, _DIGITS),
    "cifar10": (10, _CIFAR10),
    "cifar100": (100, _CIFAR100),
}
# c → the next of 5b … 5b + 4, circularly; the same target as above for 4 of 100 classes
_BLOCK_MAPS = {"cifar100": (100, {c: c - c % 5 + (c + 1) % 5 for c in range(100)})}


def class_map_for(dataset: str, num_classes: int, *, blocks: bool = False) -> dict[int, int]:
    """Return true class → class it is mistaken for; a class that is not a key is never flipped.

    ``digits`` has MNIST's classes and takes its map. On CIFAR-100 every class goes to the next one
    of its superclass, in the order of the fine indices and circularly. KMNIST has no published
    map; it takes MNIST's by class index, our choice, so that searches over data sets can mix them.

    Args:
        dataset: Name of the data set.
        num_classes: Its number of classes.
        blocks: CIFAR-100 only: the map of the published code (loss-correction, JoCoR, APL, ANL),
            within blocks of five fine indices, which are no superclasses.

    Raises:
        ValueError: The data set has no class map, or not the number of classes the map is for.

    >>> class_map_for("mnist", 10)[7]
    1
    """
    maps = _BLOCK_MAPS if blocks else _CLASS_MAPS
    if dataset not in maps:
        kind, other = ("asymmetric-blocks", "asymmetric") if blocks else ("asymmetric", "pair-flip")
        raise ValueError(
            f"{kind} noise has no class map for data set {dataset!r} (it has for "
            f"{', '.join(sorted(maps))}); use {other!r} or a 'matrix' of your own"
        )
    expected, mapping = maps[dataset]
    if num_classes != expected:
        raise ValueError(
            f"the class map of {dataset!r} is for {expected} classes, got num_classes={num_classes}"
        )
    return dict(mapping)
