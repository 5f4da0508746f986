"""Dozens, meters, liters, perimeters; parts and percents."""
from .base import ANYTHING, CLOTHES, FOOD, FRUIT, PETS, PLANTS, SCHOOL, TOYS, WORDS, items, template
from .money import percent_of

# Units

@template
def dozens(g):
    p, (_, x), a, b, c = g.person(), g.pick(FOOD + FRUIT + items("egg, rose")), g.i(2, 20), g.i(2, 60), g.i(2, 5)
    kind = g.i(0, 2)
    if kind == 0:
        g.need(12 * a > b + 1)
        g.say(f"{p} buys {g.n(a)} dozen {x} and uses {b} of them.",
              f"{p} has {g.n(a)} dozen {x}. {p.He} gives {b} away.")
        g.ask(f"How many {x} are left?", f"How many {x} does {p.he} still have?")
        g.sub("Left", g.mul(x.capitalize(), a, 12), b)
    elif kind == 1:
        g.say(f"{p} sells {g.n(a)} dozen {x} for {g.money(c)} each.",
              f"{p} buys {g.n(a)} dozen {x}. Each of them costs {g.money(c)}.")
        g.ask("How much money is that?", "How many dollars is that in total?")
        g.mul("Money", g.mul(x.capitalize(), a, 12), c)
    else:
        g.say(f"{p} needs {12 * a} {x}. They are sold by the dozen at {g.money(c)} a dozen.",
              f"A dozen {x} costs {g.money(c)}. {p} needs {12 * a} {x}.")
        g.ask(f"How much does {p.he} pay?", f"How much does {p} spend?")
        g.mul("Cost", g.div("Dozens", 12 * a, 12), c)


@template
def rope_pieces(g):
    p, k, m = g.person(), g.pick((5, 10, 20, 25, 50)), g.i(2, 9)
    x = g.pick(("rope", "ribbon", "wire", "cloth", "string", "pipe"))
    g.say(f"{p} cuts {g.n(m)} meters of {x} into pieces of {k} cm.",
          f"A {x} is {g.n(m)} meters long. {p} cuts it into pieces of {k} cm each.")
    g.ask("How many pieces are there?", f"How many pieces does {p.he} get?")
    g.div("Pieces", g.mul("Length in cm", m, 100), k)


@template
def rope_left(g):
    p, m, a, b = g.person(), g.i(2, 9), g.i(5, 60), g.i(2, 6)
    x = g.pick(("rope", "ribbon", "wire", "cloth", "string"))
    g.need(a * b + 1 < 100 * m)
    g.say(f"{p} has {g.n(m)} meters of {x} and cuts off {g.n(b)} pieces of {a} cm.",
          f"From {g.n(m)} meters of {x} {p} takes {g.n(b)} pieces, each {a} cm long.")
    g.ask(f"How many cm of {x} are left?", f"How many cm are left?")
    total = g.mul("Length in cm", m, 100)
    g.sub("Left", total, g.mul("Cut off", b, a))


@template
def unit_change(g):
    big, small, f = g.pick((("kg", "grams", 1000), ("km", "meters", 1000), ("liters", "ml", 1000), ("meters", "cm", 100), ("hours", "minutes", 60),
                            ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7), ("years", "months", 12), ("feet", "inches", 12)))
    a, b = g.i(2, 8), g.i(2, f - 2 if f > 9 else 5)
    g.quiet()
    what = {"kg": "A parcel weighs", "km": "A road is", "liters": "A pot holds", "meters": "A wall measures", "hours": "A trip takes",
            "minutes": "A song lasts", "days": "A storm lasts", "weeks": "A holiday lasts", "years": "A building job takes", "feet": "A board measures"}[big]
    g.say(f"{what} {g.n(a)} {big} and {b} {small}.")
    g.ask(f"How many {small} is that?", f"How many {small} is that in total?")
    g.add("Total", g.mul(f"In {small}", a, f), b)


@template
def laps(g):
    p, k, n, d = g.person(), g.pick((50, 100, 200, 250, 400, 500)), g.i(2, 12), g.i(2, 7)
    g.quiet()
    what = g.pick(("runs", "walks", "cycles", "swims"))
    if g.chance(.5):
        g.say(f"{p} {what} {g.n(n)} laps of {k} meters.", f"One lap is {k} meters. {p} {what} {g.n(n)} laps.")
        g.say(f"{p.He} does this on {g.n(d)} days.", f"{p.He} does that {g.n(d)} days in a row.")
        g.ask("How many meters is that in total?", "How many meters is that altogether?")
        g.mul("In all", g.mul("In a day", n, k), d)
    else:
        g.need(1000 % k == 0)
        g.say(f"One lap is {k} meters long. {p} wants to go {g.n(d)} km.",
              f"{p} {what} on a track where a lap is {k} meters. {p.He} wants to do {g.n(d)} km.")
        g.ask("How many laps is that?", f"How many laps does {p.he} need?")
        g.div("Laps", g.mul("Meters", d, 1000), k)


@template
def glasses(g):
    p, k, l = g.person(), g.pick((100, 125, 200, 250, 500)), g.i(2, 6)
    drink = g.pick(("juice", "water", "milk", "lemonade", "tea", "soup"))
    x = g.pick(("glasses", "cups", "bottles", "bowls"))
    g.quiet()
    g.need(1000 % k == 0)
    g.say(f"{p} has {g.n(l)} liters of {drink} and pours it into {x} of {k} ml.",
          f"A pot holds {g.n(l)} liters of {drink}. {p} fills {x} of {k} ml each.")
    g.ask(f"How many {x} can {p.he} fill?", f"How many {x} does that make?")
    g.div(x.capitalize(), g.mul("In ml", l, 1000), k)


@template
def perimeter(g):
    p, a, b, c = g.person(), g.i(3, 60), g.i(3, 60), g.i(2, 9)
    what = g.pick(("garden", "field", "yard", "park", "room"))
    g.say(f"A {what} is {a} meters long and {b} meters wide.", f"{p} has a {what} of {a} meters by {b} meters.")
    g.quiet()
    if g.chance(.5):
        g.say(f"A fence costs {g.money(c)} per meter.", f"One meter of fence costs {g.money(c)}.")
        g.ask(f"How much does a fence all around the {what} cost?",
              f"How much does it cost to put a fence around the {what}?")
        g.mul("Cost", g.mul("All around", 2, g.add("Two sides", a, b)), c)
    else:
        g.ask(f"How many meters is it all the way around the {what}?",
              f"What is the perimeter of the {what} in meters?")
        g.mul("All around", 2, g.add("Two sides", a, b))


@template
def area(g):
    p, a, b, c = g.person(), g.i(2, 25), g.i(2, 25), g.i(2, 9)
    what = g.pick(("floor", "wall", "lawn", "field", "roof"))
    g.say(f"A {what} is {a} meters long and {b} meters wide.", f"{p} has a {what} of {a} meters by {b} meters.")
    g.quiet()
    if g.chance(.5):
        thing = g.pick(("Paint", "Carpet", "Grass", "Tile"))
        g.say(f"{thing} costs {g.money(c)} per square meter.")
        g.ask(f"How much does it cost to cover the {what}?", f"How much does it cost for the whole {what}?")
        g.mul("Cost", g.mul("Area", a, b), c)
    else:
        g.ask(f"What is the area of the {what} in square meters?", f"How many square meters is the {what}?")
        g.mul("Area", a, b)


# Parts and percents

@template
def percent_of_group(g):
    pc = g.pick((10, 20, 25, 50, 75, 30, 40, 60, 80))
    base = {10: 10, 20: 5, 25: 4, 50: 2, 75: 4, 30: 10, 40: 10, 60: 10, 80: 10}[pc]
    n = base * g.i(2, 600 // base if base > 4 else 100)
    place, who, verb = g.pick((("school", "pupils", "walk to school"), ("club", "members", "play chess"), ("library", "books", "are new"),
                               ("farm", "animals", "are sheep"), ("shop", "toys", "are on sale"), ("box", "pens", "are blue"),
                               ("garden", "flowers", "are red"), ("train", "seats", "are taken"), ("town", "houses", "have a garden")))
    g.say(f"A {place} has {n} {who}. {pc}% of the {who} {verb}.",
          f"There are {n} {who} in a {place}, and {pc} percent of them {verb}.")
    g.quiet()
    part = percent_of(g, f"{pc}%", n, pc)
    if g.chance(.5):
        g.ask(f"How many of the {who} do not?" if not verb.startswith("are") else f"How many {who} are not?",
              "How many is that for the others?" if g.chance(.2) else f"For how many {who} is this not true?")
        g.sub("Others", n, part)
    else:
        g.ask(f"How many {who} is that?", f"How many {who} {verb}?")


@template
def percent_more(g):
    p, pc = g.person(), g.pick((10, 20, 25, 50))
    n = {10: 10, 20: 5, 25: 4, 50: 2}[pc] * g.i(2, 60)
    x = g.pick(("rent", "bus fare", "monthly pay", "ticket price", "weekly pay", "phone bill"))
    g.say(f"{p}'s {x} was {g.money(n)} and goes up by {pc}%.",
          f"{p}'s {x} of {g.money(n)} rises by {pc} percent.")
    g.quiet()
    g.ask(f"How much is it now?", f"What is the new {x} in dollars?")
    g.add("Now", n, percent_of(g, "Increase", n, pc))


@template
def half_then_quarter(g):
    p, (_, x), q = g.person(), g.pick(ANYTHING), g.i(2, 60)
    n = 8 * q if g.chance(.5) else 4 * q
    k = n // 2 // q
    name = {2: "half", 4: "a quarter"}[k]
    g.say(f"{p} has {n} {x}. {p.He} gives half of them to a friend and {name} of the rest to {p.his} sister.",
          f"{p} bakes, buys and collects things. Now {p.he} has {n} {x}, sells half of them, and then gives "
          f"away {name} of what is left.")
    g.ctx[-1] = g.ctx[-1].replace("bakes, buys and collects things. Now " + p.he + " has", "has")
    g.spare = PETS + CLOTHES
    g.ask(f"How many {x} does {p} have left?", f"How many {x} are left?")
    h = g.div("Half", n, 2)
    g.sub("Left", h, g.div("Given from the rest", h, k))


@template
def fraction_of(g):
    p, (_, x), k, e = g.person(), g.pick(ANYTHING), g.i(3, 10), g.i(2, 40)
    name = {3: "third", 4: "quarter", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth", 9: "ninth", 10: "tenth"}[k]
    m = g.i(2, 3) if k > 3 else 2
    verb = g.pick(("sells", "uses", "gives away", "loses", "paints"))
    some = m > 1 and g.chance(.4)
    part = f"{WORDS[m]} {name}s" if some else f"one {name}"
    g.need(k > m)
    g.say(f"{p} has {k * e} {x} and {verb} {part} of them.",
          f"{p} has {k * e} {x}. {p.He} {verb} {part} of the {x}.")
    y = g.div(f"One {name}", k * e, k)
    if some:
        y = g.mul(f"{WORDS[m].capitalize()} {name}s", m, y)
    if g.chance(.5) and verb != "paints":
        g.ask(f"How many {x} are left?", f"How many {x} does {p.he} still have?")
        g.sub("Left", k * e, y)
    else:
        g.ask(f"How many {x} is that?",
              f"How many {x} does {p.he} "
              f"{dict(sells='sell', uses='use', loses='lose', paints='paint').get(verb, 'give away')}?")


@template
def colors(g):
    p, (_, x) = g.person(), g.pick(TOYS + CLOTHES + SCHOOL)
    c1, c2, c3 = g.some(("red", "blue", "green", "yellow", "black", "white", "pink"), 3)
    a, b = g.i(3, 90), g.i(3, 90)
    n = a + b + g.i(3, 200)
    g.say(f"{p} has {n} {x}. {a} are {c1}, {b} are {c2} and the rest are {c3}.",
          f"Of {n} {x}, {a} are {c1} and {b} are {c2}. All the others are {c3}.")
    g.quiet()
    g.ask(f"How many {x} are {c3}?", f"How many {c3} {x} are there?")
    g.sub(c3.capitalize(), n, g.add("Not " + c3, a, b))


@template
def colors_times(g):
    (_, x), a, k, d = g.pick(TOYS + CLOTHES + SCHOOL + PLANTS), g.i(3, 40), g.i(2, 5), g.i(2, 30)
    c1, c2, c3 = g.some(("red", "blue", "green", "yellow", "black", "white", "pink"), 3)
    as_many = g.times(k).replace("double", "twice") + " as many"
    g.say(f"In a box there are {g.n(a)} {c1} {x}, {as_many} {c2} ones, and {g.n(d)} more {c3} ones than {c1} "
          "ones.",
          f"A shop has {g.n(a)} {c1} {x}. It has {as_many} {c2} {x} as {c1} ones and {g.n(d)} more {c3} {x} "
          f"than {c1} ones.")
    g.quiet()
    g.ask(f"How many {x} are there in total?", f"How many {x} is that altogether?")
    g.add("Total", a, g.mul(c2.capitalize(), k, a), g.add(c3.capitalize(), a, d))
