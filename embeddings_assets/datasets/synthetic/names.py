"""Class names for the synthetic datasets: real ones, with the oddities of their dataset.

Each table is in its dataset's official order.
"""

CUB = (
    "Black_footed_Albatross",
    "Laysan_Albatross",
    "Sooty_Albatross",
    "Groove_billed_Ani",
    "Crested_Auklet",
    "Least_Auklet",
    "Parakeet_Auklet",
    "Rhinoceros_Auklet",
)

# Variant, family, manufacturer: sorted by variant as in variants.txt; names with spaces and with a slash.
AIRCRAFT = (
    ("707-320", "Boeing 707", "Boeing"),
    ("747-100", "Boeing 747", "Boeing"),
    ("A300B4", "A300", "Airbus"),
    ("BAE 146-200", "BAE 146", "British Aerospace"),
    ("Cessna 172", "Cessna 172", "Cessna"),
    ("Eurofighter Typhoon", "Eurofighter Typhoon", "Eurofighter"),
    ("F-16A/B", "F-16", "Lockheed Martin"),
    ("F/A-18", "F/A-18", "McDonnell Douglas"),
)

# Sparse ids whose order as text differs; the species above a leaf bears the same name without the plumage.
NABIRDS = (
    (295, "Common Eider (Adult male)"),
    (298, "Swainson's Hawk (Dark morph )"),
    (313, "Snow Goose (White morph)"),
    (529, "Mourning Dove"),
    (746, "Dark-eyed Junco (Slate-colored)"),
    (817, "Oak Titmouse"),
    (1003, "House Sparrow (Female/Juvenile)"),
    (1010, "Dark-eyed Junco (Red-backed/Gray-headed)"),
)

# Not alphabetical, as in cars_meta.mat; one with a slash.
CARS = (
    "AM General Hummer SUV 2000",
    "Acura RL Sedan 2012",
    "Acura TL Type-S 2008",
    "Acura Integra Type R 2001",
    "Aston Martin V8 Vantage Convertible 2012",
    "Audi RS 4 Convertible 2008",
    "Audi A5 Coupe 2012",
    "Ram C/V Cargo Van Minivan 2012",
)

# Sorted by WordNet id; names with dashes. The Shetland sheepdog is the class with a PNG named .jpg.
DOGS = (
    "n02085620-Chihuahua",
    "n02086240-Shih-Tzu",
    "n02088364-beagle",
    "n02089078-black-and-tan_coonhound",
    "n02105855-Shetland_sheepdog",
    "n02110958-pug",
    "n02113712-miniature_poodle",
    "n02113978-Mexican_hairless",
)
