"""Short texts about everyday photos, made from words that ship with the project, for use where no queries are known."""

from __future__ import annotations

import random


def everyday_texts(count: int, seed: int = 0) -> tuple[str, ...]:
    """Returns distinct texts such as "a red bicycle", "dog on the beach" or "woman reading a book in the garden".

    Args:
      count: Number of texts, at most 50,000.
      seed: Seed of the choice; fewer texts with the same seed are the first of more.
    """
    chooser = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[_text(chooser)] = None
    return tuple(texts)


def _text(chooser: random.Random) -> str:
    (form,) = chooser.choices(list(_FORMS), list(_FORMS.values()))
    words = []
    for word in form.split():
        name, article = word.strip("{}"), word.startswith("{{")
        chosen = chooser.choice(_WORDS[name]) if word.startswith("{") else word
        words.append(_with_article(chosen) if article else chosen)
    return " ".join(words)


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' and not phrase.startswith('uni') else 'a'} {phrase}"


def _list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(word.split()) for word in text.split(","))


_PEOPLE = _list("""
    man, woman, boy, girl, child, baby, toddler, teenager, old man, old woman, young man, young woman, mother, father,
    grandmother, grandfather, bride, groom, couple, family, student, teacher, doctor, nurse, police officer,
    firefighter, soldier, farmer, fisherman, worker, chef, waiter, musician, singer, dancer, painter, photographer,
    cyclist, runner, skier, surfer, swimmer, climber, hiker, skateboarder, football player, tennis player, tourist,
    shopper, businessman
""")
_GROUPS = _list("""
    two men, two women, two boys, two girls, two children, three friends, children, kids, friends, people, students,
    tourists, a crowd, a group of people, a group of children, a young couple, an old couple, a family, two people,
    several people, a football team, musicians
""")
_ANIMALS = _list("""
    dog, puppy, cat, kitten, horse, pony, cow, calf, sheep, lamb, goat, pig, rabbit, squirrel, deer, fox, bear, lion,
    tiger, elephant, giraffe, zebra, monkey, bird, duck, swan, goose, chicken, eagle, owl, parrot, pigeon, seagull,
    fish, turtle, frog, butterfly, bee, brown dog, black dog, white dog, small dog, black cat, white horse
""")
_VEHICLES = _list("""
    car, bicycle, motorcycle, bus, truck, van, tractor, train, tram, boat, sailboat, ship, canoe, airplane, helicopter,
    scooter, skateboard, taxi, ambulance, fire engine, hot air balloon, stroller, sled, wheelchair
""")
_OBJECTS = _list("""
    ball, book, newspaper, phone, laptop, camera, clock, lamp, chair, table, sofa, bed, desk, mirror, window, door,
    umbrella, hat, coat, dress, shirt, scarf, shoe, boot, glove, bag, backpack, suitcase, toy, doll, teddy bear, kite,
    guitar, piano, violin, drum, bottle, cup, glass, plate, knife, candle, basket, box, rope, ladder, fence, gate,
    bench, sign, flag, statue, fountain, bridge, tent, swing, slide, frisbee, racket, bat, helmet, surfboard, key, ring,
    watch, painting, photo, letter, ticket, receipt, map, flower pot, vase, bouquet, tree, flower, rose, sunflower,
    leaf, rock, mountain, river, waterfall, rainbow, cloud, moon, snowman, sandcastle, house, tower, castle, church,
    barn, lighthouse, skyscraper, staircase, pool
""")
_FOOD = _list("""
    bread, cake, birthday cake, pizza, sandwich, burger, salad, soup, pasta, rice, sushi, steak, fried eggs, cheese,
    apple, banana, orange, strawberries, grapes, watermelon, lemon, tomato, carrot, potato, mushroom, corn, pumpkin,
    cookie, chocolate, ice cream, pancakes, coffee, tea, juice, beer, wine, breakfast, lunch, dinner, dessert
""")
_ADJECTIVES = _list("""
    red, orange, yellow, green, blue, purple, pink, brown, black, white, gray, golden, silver, striped, colorful, old,
    new, small, big, tall, long, round, broken, wooden, empty, dirty, wet, bright, dark, beautiful, vintage, modern
""")
_COLOURS = _list("red, orange, yellow, green, blue, purple, pink, brown, black, white, gray, striped, colorful")
_CLOTHES = _list("""
    shirt, jacket, coat, dress, hat, cap, scarf, sweater, suit, uniform, helmet, swimsuit, vest, skirt, costume, hoodie
""")
_PLACES = _list("""
    on the beach, in the park, in the garden, in the kitchen, in the street, on the road, in the snow, in the water,
    in the forest, in a field, on the grass, on a bench, on a mountain, by the lake, by the river, by the sea, at the
    pool, at the airport, at the station, at a restaurant, at a market, at a party, at a wedding, at the zoo, at school,
    at work, at home, in an office, in a shop, in a museum, in a church, in a stadium, in a city, in a village, in the
    desert, on a farm, on a boat, on a bridge, on a balcony, on a couch, on a bed, at a table, in front of a house, in
    front of a building, next to a car, next to a tree, under a tree, under an umbrella, on a playground, on a swing, in
    a parking lot, on a sidewalk, in a tent, in a bathtub, on the stairs, behind a fence, in the mud, in tall grass, on
    a dirt path, on a stage
""")
_TIMES = _list("""
    at night, at sunset, at sunrise, in the rain, in the fog, in winter, in summer, in autumn, in spring, on a sunny
    day, on a cloudy day, at Christmas, in the evening, in the morning
""")
_ACTIVITIES = _list("""
    running, walking, sitting, standing, jumping, dancing, sleeping, smiling, laughing, crying, swimming, climbing,
    playing, eating, drinking, cooking, reading a book, writing, drawing, painting a wall, singing, talking on the
    phone, taking a photo, looking at the camera, riding a bicycle, riding a horse, riding a motorcycle, driving a car,
    walking a dog, playing football, playing basketball, playing tennis, playing baseball, playing volleyball, playing
    the guitar, playing the piano, playing with a ball, playing with a dog, playing chess, throwing a ball, catching a
    frisbee, kicking a ball, flying a kite, skiing, snowboarding, skateboarding, surfing, fishing, hiking, camping,
    rock climbing, diving, rowing a boat, doing a trick, working on a laptop, fixing a car, cutting wood, washing
    dishes, watering plants, picking apples, feeding ducks, holding a baby, holding flowers, holding an umbrella,
    carrying a bag, carrying a child, pushing a stroller, waiting for a bus, shopping, hugging, kissing, waving,
    pointing, blowing out candles, opening a present, having a picnic, having dinner, drinking coffee, eating ice
    cream, eating pizza, going down a slide, climbing a tree, climbing a ladder, crossing the street, sitting on a
    bench, lying on the grass, building a sandcastle, making a snowman, wearing sunglasses, wearing a costume
""")
_ANIMAL_ACTIVITIES = _list("""
    running, jumping, sleeping, swimming, playing, eating, drinking, sitting, standing, lying, looking at the camera,
    playing with a ball, chasing a ball, catching a frisbee, carrying a stick, jumping over a fence, shaking off water,
    digging, climbing, walking on a leash, running through water, running through the snow, fighting, hiding
""")
_OCCASIONS = _list("""
    birthday, wedding, party, holiday, vacation, graduation, concert, parade, festival, picnic, football game, race,
    road trip, camping trip, baby shower, barbecue, meeting, market, sunset, sunrise, thunderstorm, fireworks, snowfall,
    city skyline, family photo, selfie, screenshot, passport, whiteboard, Christmas tree, Halloween costume
""")
_PARTS_OF_SCENE = _list("""
    beach, park, garden, kitchen, living room, bedroom, bathroom, street, forest, field, lake, river, sea, harbor,
    airport, station, restaurant, office, museum, stadium, city, village, desert, farm, playground, mountains, castle,
    library, hospital, school, swimming pool, skate park, ski slope, basketball court, tennis court
""")

_WORDS = {
    "person": _PEOPLE,
    "group": _GROUPS,
    "animal": _ANIMALS,
    "vehicle": _VEHICLES,
    "object": _OBJECTS,
    "thing": _VEHICLES + _OBJECTS,
    "food": _FOOD,
    "adjective": _ADJECTIVES,
    "colour": _COLOURS,
    "clothes": _CLOTHES,
    "place": _PLACES,
    "time": _TIMES,
    "doing": _ACTIVITIES,
    "moving": _ANIMAL_ACTIVITIES,
    "occasion": _OCCASIONS,
    "scene": _PARTS_OF_SCENE,
}

_FORMS = {
    "{adjective} {thing}": 4,
    "{{adjective}} {thing}": 3,
    "{thing} {place}": 3,
    "{{thing}} {place}": 2,
    "{adjective} {thing} {place}": 2,
    "{animal} {place}": 4,
    "{{animal}} {moving}": 4,
    "{{animal}} {moving} {place}": 5,
    "{{animal}} and {{animal}}": 1,
    "{person} {doing}": 5,
    "{{person}} {doing}": 5,
    "{{person}} {doing} {place}": 8,
    "{{person}} in {{colour}} {clothes}": 3,
    "{{person}} in {{colour}} {clothes} {doing}": 5,
    "{{person}} with {{object}}": 2,
    "{{person}} with {{animal}} {place}": 2,
    "{{person}} and {{person}} {place}": 2,
    "{group} {doing}": 4,
    "{group} {doing} {place}": 5,
    "{food} on a plate": 1,
    "{food} and {food}": 1,
    "{{person}} eating {food}": 1,
    "{occasion}": 1,
    "{occasion} {place}": 2,
    "{occasion} {time}": 2,
    "{scene}": 1,
    "{scene} {time}": 3,
    "{{person}} {place} {time}": 2,
    "{thing} {time}": 1,
}
"""Forms of a text with their relative frequency; a word in double braces gets an indefinite article."""
