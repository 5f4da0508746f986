"""More, fewer and times as many; ages, heights and points."""
from .base import ANYTHING, CLOTHES, PETS, template

# Comparisons and ages

@template
def more_than(g):
    (p, r), (_, x), a, d = g.people(2), g.pick(ANYTHING), g.size(40, 400), g.i(2, 90)
    g.say(f"{p} has {a} {x}. {r} has {g.n(d)} more than {p}.",
          f"{r} has {g.n(d)} more {x} than {p}. {p} has {a} {x}.")
    g.spare = PETS + CLOTHES
    if g.chance(.65):
        g.ask(f"How many {x} do they have together?", f"How many {x} do {p} and {r} have in total?")
        g.add("Together", a, g.add(r.n, a, d))
    else:
        g.ask(f"How many {x} does {r} have?")
        g.add(r.n, a, d)


@template
def fewer_than(g):
    (p, r), (_, x), a, d = g.people(2), g.pick(ANYTHING), g.size(60, 400), g.i(2, 90)
    g.need(d + 1 < a)
    g.say(f"{p} has {a} {x}. {r} has {g.n(d)} fewer than {p}.",
          f"{r} has {g.n(d)} fewer {x} than {p}. {p} has {a} {x}.",
          f"{p} has {a} {x}, which is {g.n(d)} more than {r} has.")
    g.spare = PETS + CLOTHES
    if g.chance(.65):
        g.ask(f"How many {x} do they have together?", f"How many {x} do {p} and {r} have in total?")
        g.add("Together", a, g.sub(r.n, a, d))
    else:
        g.ask(f"How many {x} does {r} have?")
        g.sub(r.n, a, d)


@template
def times_as_many(g):
    (p, r), (_, x), a, k = g.people(2), g.pick(ANYTHING), g.size(30, 200), g.i(2, 6)
    as_many = g.times(k).replace("double", "twice") + " as many"
    g.say(f"{p} has {a} {x}. {r} has {as_many} as {p}.", f"{r} has {as_many} {x} as {p}, who has {a}.")
    g.spare = PETS + CLOTHES
    kind = g.i(0, 2)
    if kind == 0:
        g.ask(f"How many {x} do they have together?", f"How many {x} do they have in total?")
        g.add("Together", a, g.mul(r.n, k, a))
    elif kind == 1:
        g.ask(f"How many {x} does {r} have?")
        g.mul(r.n, k, a)
    else:
        g.ask(f"How many more {x} does {r} have than {p}?")
        g.sub("Difference", g.mul(r.n, k, a), a)


@template
def chain_of_three(g):
    (p, r, s), (_, x), a, k, d = g.people(3), g.pick(ANYTHING), g.i(3, 60), g.i(2, 5), g.i(2, 40)
    as_many = g.times(k).replace("double", "twice") + " as many"
    more = g.chance(.5)
    g.need(more or k * a > d + 1)
    g.say(f"{p} has {g.n(a)} {x}. {r} has {as_many} as {p}. {s} has {g.n(d)} {'more' if more else 'fewer'} "
          f"than {r}.",
          f"{s} has {g.n(d)} {'more' if more else 'fewer'} {x} than {r}. {r} has {as_many} as {p}. {p} has "
          f"{g.n(a)} {x}.")
    g.quiet()
    y = g.mul(r.n, k, a)
    z = g.add(s.n, y, d) if more else g.sub(s.n, y, d)
    if g.chance(.5):
        g.ask(f"How many {x} do the three have together?", f"How many {x} do they have in total?")
        g.add("Together", a, y, z)
    else:
        g.ask(f"How many {x} does {s} have?")


@template
def three_friends_sum(g):
    (p, r, s), (_, x), a, b, c = g.people(3), g.pick(ANYTHING), g.i(2, 90), g.i(2, 60), g.i(2, 60)
    g.need(b < a - 1)
    g.say(f"{p} has {a} {x}. {r} has {g.n(b)} fewer than {p}, and {s} has {g.n(c)} more than {p}.",
          f"{p} picked {a} {x}, {r} picked {g.n(b)} fewer than {p}, and {s} picked {g.n(c)} more than {p}.")
    g.quiet()
    g.ask(f"How many {x} do they have altogether?", f"How many {x} is that in total?")
    g.add("Total", a, g.sub(r.n, a, b), g.add(s.n, a, c))


@template
def age_future(g):
    (p, r), a, k, y = g.people(2), g.i(3, 20), g.i(2, 4), g.i(2, 20)
    g.quiet()
    kind = g.i(0, 3)
    if kind == 0:
        g.say(f"{p} is {a} years old. {r} is {g.times(k).replace('double', 'twice')} as old.",
              f"{r} is {g.times(k).replace('double', 'twice')} as old as {p}, who is {a}.")
        g.ask(f"How old will {r} be in {g.n(y)} years?")
        g.add(f"In {y} years", g.mul(f"{r} now", k, a), y)
    elif kind == 1:
        g.say(f"{p} is {a} years old and {r} is {g.n(y)} years older.",
              f"{r} is {g.n(y)} years older than {p}. {p} is {a}.")
        n = g.i(2, 15)
        if g.chance(.5):
            g.ask(f"How old will {r} be in {g.n(n)} years?")
            g.add(f"In {n} years", g.add(f"{r} now", a, y), n)
        else:
            g.ask("What is the sum of their ages?", "How old are they together?")
            g.add("Together", a, g.add(f"{r} now", a, y))
    elif kind == 2:
        b = a + g.i(5, 40)
        g.say(f"{p} is {b} years old. {r} is {b - a} years younger.",
              f"{r} is {b - a} years younger than {p}. {p} is {b} years old.")
        n = g.i(2, 20)
        g.ask(f"How old will {r} be in {g.n(n)} years?")
        g.add(f"In {n} years", g.sub(f"{r} now", b, b - a), n)
    else:
        b = a + g.i(12, 40)
        n = g.i(2, min(12, max(2, a - 1)))
        g.need(a > n + 1)
        g.say(f"{p} is {a} years old and {r} is {b} years old.", f"Today {p} is {a} and {r} is {b}.")
        g.ask(f"How old were they together {g.n(n)} years ago?",
              f"What was the sum of their ages {g.n(n)} years ago?")
        g.add("Together", g.sub(f"{p} then", a, n), g.sub(f"{r} then", b, n))


@template
def age_parent(g):
    p, a, d, k = g.person(), g.i(4, 15), g.i(20, 35), g.i(2, 9)
    parent = g.pick(("mother", "father", "aunt", "uncle", "teacher"))
    g.quiet()
    g.say(f"{p}'s {parent} is {a + d} years old. {p} is {d} years younger than {p.his} {parent}.",
          f"{p} is {d} years younger than {p.his} {parent}, who is {a + d}.")
    if g.chance(.5):
        g.say(f"{p}'s brother is {g.n(k)} years older than {p}.")
        g.ask(f"How old is {p}'s brother?")
        g.add("Brother", g.sub(p.n, a + d, d), k)
    else:
        g.ask(f"How old will {p} be in {g.n(k)} years?")
        g.add(f"In {k} years", g.sub(f"{p} now", a + d, d), k)


@template
def heights(g):
    (p, r, s), a, b, c = g.people(3), g.i(100, 180), g.i(2, 30), g.i(2, 30)
    g.quiet()
    up, up2 = g.chance(.5), g.chance(.5)
    g.say(f"{p} is {a} cm tall. {r} is {g.n(b)} cm {'taller' if up else 'shorter'} than {p}, and {s} is "
          f"{g.n(c)} cm {'taller' if up2 else 'shorter'} than {r}.")
    g.ask(f"How tall is {s} in cm?", f"How many cm tall is {s}?")
    y = (g.add if up else g.sub)(r.n, a, b)
    (g.add if up2 else g.sub)(s.n, y, c)


@template
def weights(g):
    p, x, y = g.person(), *g.some(("dog", "cat", "sack of rice", "suitcase", "bag", "box", "chair", "melon", "bike"), 2)
    a, k, d = g.i(2, 40), g.i(2, 5), g.i(2, 15)
    g.quiet()
    if g.chance(.5):
        g.say(f"A {x} weighs {a} kg. A {y} weighs {g.times(k).replace('double', 'twice')} as much.")
        z = g.mul(f"The {y}", k, a)
    else:
        g.say(f"A {x} weighs {a} kg. A {y} is {g.n(d)} kg heavier.",
              f"A {y} is {g.n(d)} kg heavier than a {x}. The {x} weighs {a} kg.")
        z = g.add(f"The {y}", a, d)
    g.ask(f"How many kg do they weigh together?", f"What is their weight together in kg?")
    g.add("Together", a, z)


@template
def half_as_many(g):
    (p, r), (_, x), h, c = g.people(2), g.pick(ANYTHING), g.i(2, 150), g.i(2, 40)
    g.say(f"{p} has {2 * h} {x}. {r} has half as many.",
          f"{r} has half as many {x} as {p}. {p} has {2 * h} {x}.")
    kind = g.i(0, 2)
    if kind == 0:
        g.ask(f"How many {x} do they have together?", f"How many {x} do they have in total?")
        g.add("Together", 2 * h, g.div(r.n, 2 * h, 2))
    elif kind == 1:
        g.say(f"Then {r} gets {g.n(c)} more.", f"Later {r} finds {g.n(c)} more.")
        g.ask(f"How many {x} does {r} have now?")
        g.add("Now", g.div(r.n, 2 * h, 2), c)
    else:
        g.need(h > c + 1)
        g.say(f"Then {r} loses {g.n(c)} of them.", f"Later {r} gives {g.n(c)} of them away.")
        g.ask(f"How many {x} does {r} have left?")
        g.sub("Left", g.div(r.n, 2 * h, 2), c)


@template
def how_many_more_made(g):
    (p, r), (_, x), a, b, c, d = g.people(2), g.pick(ANYTHING), g.i(2, 20), g.i(2, 12), g.i(2, 20), g.i(2, 12)
    g.need(a * b > c * d + 1)
    verb = g.pick(("makes", "picks", "packs", "sells", "counts"))
    g.say(f"{p} {verb} {g.n(a)} {x} an hour for {g.n(b)} hours. {r} {verb} {g.n(c)} {x} an hour for {g.n(d)} "
          "hours.")
    g.quiet()
    g.ask(f"How many more {x} is that for {p} than for {r}?", f"How many more {x} does {p} have than {r}?")
    g.sub("Difference", g.mul(p.n, a, b), g.mul(r.n, c, d))


@template
def game_points(g):
    p, a, b, v, w, m = g.person(), g.i(2, 15), g.i(2, 15), g.i(2, 10), g.i(2, 10), g.i(2, 20)
    g.need(v != w and a * v + b * w > m + 1)
    x, y = g.some(("red ring", "blue ring", "star", "gold coin", "gem", "goal", "long shot", "short shot", "target"), 2)
    g.say(f"In a game a {x} is worth {g.n(v)} points and a {y} is worth {g.n(w)} points. {p} gets {g.n(a)} "
          f"{x}s and {g.n(b)} {y}s.",
          f"{p} plays a game with {g.n(v)} points for each {x} and {g.n(w)} points for each {y}. {p.He} gets "
          f"{g.n(a)} {x}s and {g.n(b)} {y}s.")
    t = g.add("Together", g.mul(f"{x.capitalize()}s", a, v), g.mul(f"{y.capitalize()}s", b, w))
    if g.chance(.4):
        g.say(f"Then {p.he} loses {g.n(m)} points.", f"{p.He} also has a penalty of {g.n(m)} points.")
        g.sub("Points", t, m)
    g.quiet()
    g.ask(f"How many points does {p} have?", f"How many points does {p.he} have in the end?")


@template
def class_parts(g):
    n, b, a, k = g.i(12, 40), g.i(4, 30), g.i(2, 10), g.i(2, 9)
    g.need(b + 2 < n and n - b > a + 1)
    kids = g.pick((("girls", "boys"), ("boys", "girls")))
    g.say(f"A class has {n} pupils, and {b} of them are {kids[0]}. Today {g.n(a)} of the {kids[1]} are absent.",
          f"There are {n} children in a class: {b} {kids[0]} and the rest {kids[1]}. {g.n(a).capitalize()} of "
          f"the {kids[1]} are sick.")
    g.quiet()
    g.ask(f"How many {kids[1]} are in class today?", f"How many {kids[1]} are there today?")
    g.sub("Today", g.sub(kids[1].capitalize(), n, b), a)


@template
def classes(g):
    a, b, k, t = g.i(2, 12), g.i(12, 32), g.i(2, 9), g.i(3, 30)
    g.say(f"A school has {g.n(a)} classes with {b} pupils each and {t} teachers.",
          f"There are {g.n(a)} classes of {b} pupils in a school. The school has {t} teachers.")
    g.quiet()
    if g.chance(.5):
        g.ask("How many pupils and teachers are there in total?", "How many people is that together?")
        g.add("Total", g.mul("Pupils", a, b), t)
    else:
        g.say(f"Every pupil gets {g.n(k)} books.", f"Each pupil needs {g.n(k)} books.")
        g.ask("How many books are needed for the pupils?", "How many books do the pupils need?")
        g.mul("Books", g.mul("Pupils", a, b), k)


@template
def transfer_equal(g):
    (p, r), (_, x), e, d = g.people(2), g.pick(ANYTHING), g.i(3, 90), g.i(2, 30)
    g.need(e > d + 1)
    g.say(f"{p} has {e + d} {x} and {r} has {e - d} {x}.", f"{r} has {e - d} {x}. {p} has {e + d} {x}.")
    g.quiet()
    g.ask(f"How many {x} must {p} give to {r} so that both have the same number?",
          f"How many {x} should {p} give {r} to make it equal?")
    g.div("To give", g.sub("Difference", e + d, e - d), 2)
