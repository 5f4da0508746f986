"""Sharing and grouping, speed, work, time and daily totals."""
from .base import (ANYTHING, CLOTHES, FOOD, FRUIT, HOLDERS, HOUSE, PETS, PLANTS, SCHOOL, TOYS, DAYS, template)

# Sharing and grouping

@template
def share_equally(g):
    p, (_, x), k, e = g.person(), g.pick(ANYTHING), g.i(2, 12), g.i(2, 40)
    g.say(f"{p} has {k * e} {x} and shares them equally among {g.n(k)} friends.",
          f"{p} divides {k * e} {x} equally between {g.n(k)} children.",
          f"There are {k * e} {x} for {g.n(k)} children. Each child gets the same number.")
    g.spare = HOUSE + PETS
    g.ask(f"How many {x} does each one get?", f"How many {x} are there for each of them?")
    g.div("Each", k * e, k)


@template
def share_remainder(g):
    p, (_, x), k, e = g.person(), g.pick(ANYTHING), g.i(3, 12), g.i(2, 12)
    r = g.i(1, k - 1)
    g.need(e * k + r < 150)
    g.say(f"{p} has {e * k + r} {x}. {p.He} gives {g.n(k)} friends the same number of {x}, as many as "
          "possible.",
          f"{p} shares {e * k + r} {x} equally among {g.n(k)} children and keeps what is left over.",
          f"{p} puts {e * k + r} {x} into bags of {g.n(k)} until there are not enough for another bag.")
    g.ask(f"How many {x} are left over?", f"How many {x} remain?")
    g.divrem("Sharing", e * k + r, k)


@template
def trips_needed(g):
    k, e = g.i(3, 12), g.i(2, 12)
    r = g.i(1, k - 1)
    n = e * k + r
    who, car = g.pick((("pupils", "van"), ("people", "boat"), ("guests", "table"), ("children", "tent"), ("players", "car"), ("hikers", "cabin")))
    g.say(f"{n} {who} need places. One {car} holds {g.n(k)} of them.",
          f"A group of {n} {who} is coming. Each {car} has room for {g.n(k)}.")
    g.ask(f"How many {car}s are needed?", f"What is the smallest number of {car}s they need?")
    q, _ = g.divrem("Full", n, k)
    g.add("With one more for the rest", q, 1)


@template
def fill_boxes(g):
    p, (_, x), (h, hs), k, e = g.person(), g.pick(ANYTHING), g.pick(HOLDERS), g.i(2, 12), g.i(2, 60)
    g.need(x != hs)
    g.say(f"{p} packs {k * e} {x} into {hs}. Each {h} holds {g.n(k)}.",
          f"{p} has {k * e} {x} and puts {g.n(k)} of them in each {h}.")
    g.ask(f"How many {hs} does {p.he} need?", f"How many {hs} are needed?", f"How many {hs} can {p} fill?")
    g.div(hs.capitalize(), k * e, k)


@template
def combine_and_share(g):
    (p, r), (_, x), k, e = g.people(2), g.pick(ANYTHING), g.i(2, 10), g.i(3, 40)
    a = g.i(2, k * e - 2)
    g.say(f"{p} has {a} {x} and {r} has {k * e - a} {x}. They put them together and share them equally among "
          f"{g.n(k)} children.",
          f"{p} brings {a} {x} and {r} brings {k * e - a} {x}. All of them are divided equally between "
          f"{g.n(k)} friends.")
    g.ask(f"How many {x} does each get?", f"How many {x} are there for each one?")
    g.div("Each", g.add("Together", a, k * e - a), k)


@template
def give_each(g):
    p, (_, x), n, k, e = g.person(), g.pick(ANYTHING), g.i(2, 30), g.i(2, 12), g.i(2, 12)
    m = k * e + n
    g.say(f"{p} has {m} {x}. {p.He} gives {g.n(e)} to each of {g.n(k)} friends.",
          f"There are {m} {x} on the table. {p} hands {g.n(e)} of them to each of {g.n(k)} guests.")
    g.spare = HOUSE + PETS
    g.ask(f"How many {x} are left?", f"How many {x} remain?")
    g.sub("Left", m, g.mul("Given", k, e))


@template
def rows_of_seats(g):
    a, b, t = g.i(4, 40), g.i(4, 30), g.i(2, 200)
    g.need(t + 1 < a * b)
    place = g.pick(("theater", "cinema", "hall", "stadium", "concert room", "bus station"))
    g.say(f"A {place} has {g.n(a)} rows with {g.n(b)} seats each. {t} seats are taken.",
          f"There are {g.n(a)} rows of {g.n(b)} seats in the {place}, and {t} people are sitting.")
    g.ask("How many seats are empty?", "How many seats are still free?")
    g.sub("Empty", g.mul("Seats", a, b), t)


@template
def boxes_times(g):
    p, (_, x), (h, hs), a, b = g.person(), g.pick(ANYTHING), g.pick(HOLDERS), g.i(2, 30), g.i(2, 40)
    g.need(x != hs)
    extra = g.i(2, 60)
    g.say(f"{p} has {g.n(a)} {hs} with {g.n(b)} {x} each.",
          f"There are {g.n(a)} {hs}, and each {h} holds {g.n(b)} {x}.",
          f"{p} fills {g.n(a)} {hs} with {g.n(b)} {x} each.")
    g.spare = PETS + CLOTHES
    kind = g.i(0, 2)
    if kind == 0:
        g.ask(f"How many {x} are there in total?", f"How many {x} is that altogether?")
        g.mul(x.capitalize(), a, b)
    elif kind == 1:
        g.say(f"There are {extra} more {x} on the floor.", f"Another {extra} {x} lie on the table.")
        g.ask(f"How many {x} are there in total?", f"How many {x} are there altogether?")
        g.add("Total", g.mul(f"In the {hs}", a, b), extra)
    else:
        g.need(extra + 1 < a * b)
        verb = g.pick(("are sold", "are lost", "are given away", "break", "are used"))
        g.say(f"Then {extra} {x} {verb}.", f"{extra} of the {x} {verb}.")
        g.ask(f"How many {x} are left?", f"How many {x} remain?")
        g.sub("Left", g.mul(f"In the {hs}", a, b), extra)


@template
def two_kinds_of_boxes(g):
    p, (_, x), a, b, c, d = g.person(), g.pick(ANYTHING), g.i(2, 15), g.i(2, 20), g.i(2, 15), g.i(2, 20)
    g.need(b > d)
    g.say(f"{p} has {g.n(a)} big boxes with {g.n(b)} {x} each and {g.n(c)} small boxes with {g.n(d)} {x} each.",
          f"A large bag holds {g.n(b)} {x} and a small bag holds {g.n(d)} {x}. {p} has {g.n(a)} large bags "
          f"and {g.n(c)} small bags.")
    g.ask(f"How many {x} does {p} have?", f"How many {x} are there in total?")
    g.add("Total", g.mul("Big ones", a, b), g.mul("Small ones", c, d))


@template
def boxes_in_boxes(g):
    (_, x), a, b, c = g.pick(ANYTHING), g.i(2, 9), g.i(2, 9), g.i(2, 12)
    g.need(x not in ("boxes", "bags"))
    g.say(f"A truck carries {g.n(a)} crates. Each crate has {g.n(b)} boxes and each box has {g.n(c)} {x}.",
          f"There are {g.n(a)} crates with {g.n(b)} boxes in each. Every box holds {g.n(c)} {x}.")
    g.ask(f"How many {x} are there in all?", f"How many {x} is that in total?")
    g.mul(x.capitalize(), g.mul("Boxes", a, b), c)


# Rates and time

@template
def distance(g):
    p, v, h = g.person(), g.i(4, 90), g.i(2, 9)
    how = g.pick(("drives", "cycles", "travels", "rides"))
    g.say(f"{p} {how} at {v} km per hour for {g.n(h)} hours.",
          f"{p} {how} {v} miles every hour. The trip takes {g.n(h)} hours.")
    unit = "km" if "km" in g.ctx[0] else "miles"
    k = g.i(5, 200)
    if g.chance(.4):
        g.need(k + 1 < v * h)
        g.say(f"{p.He} has already done {k} {unit} of the trip.", f"After {k} {unit} {p.he} makes a stop.")
        g.ask(f"How many {unit} are left after that?", f"How many {unit} of the trip are still to go then?")
        g.sub("Left", g.mul("Whole trip", h, v), k)
    else:
        g.ask(f"How many {unit} is that?", f"How far does {p.he} go, in {unit}?")
        g.mul("Distance", h, v)


@template
def distance_two_legs(g):
    p, v, w, h, k = g.person(), g.i(4, 80), g.i(4, 80), g.i(2, 6), g.i(2, 6)
    g.say(f"{p} drives at {v} km per hour for {g.n(h)} hours and then at {w} km per hour for {g.n(k)} hours.",
          f"A train goes {v} km per hour for the first {g.n(h)} hours and {w} km per hour for the next "
          f"{g.n(k)} hours.")
    g.ask("How many km is the whole trip?", "How far is that in total, in km?")
    g.add("Total", g.mul("First part", h, v), g.mul("Second part", k, w))


@template
def travel_time(g):
    p, v, h, b = g.person(), g.i(3, 90), g.i(2, 10), g.i(2, 5)
    g.say(f"{p} has to travel {v * h} km at {v} km per hour.",
          f"A bus goes {v} km per hour. The next town is {v * h} km away.")
    if g.chance(.3):
        g.say(f"On the way there are {b} hours of rest.", f"There is also a break of {b} hours.")
        g.ask("How many hours does the whole trip take?", "How many hours is that in total?")
        g.add("Total", g.div("Hours", v * h, v), b)
    else:
        g.ask("How many hours does the trip take?", "How many hours does it take?")
        g.div("Hours", v * h, v)


@template
def finish_book(g):
    p, r, d, s = g.person(), g.i(4, 40), g.i(2, 12), g.i(5, 120)
    g.say(f"{p} is reading a book of {s + r * d} pages. {p.He} has read {s} pages and now reads {g.n(r)} "
          "pages a day.",
          f"A book has {s + r * d} pages. {p} already finished {s} of them and reads {g.n(r)} more every day.")
    g.noise_ok = False
    g.ask(f"In how many days does {p.he} finish the book?", f"How many days does {p} still need?")
    g.div("Days", g.sub("Pages left", s + r * d, s), r)


@template
def pages_left(g):
    p, a, b = g.person(), g.i(5, 120), g.i(5, 120)
    n = a + b + g.i(5, 250)
    d1, d2 = g.some(DAYS, 2)
    g.say(f"{p} has a book of {n} pages. On {d1} {p.he} reads {a} pages and on {d2} {b} pages.",
          f"{p} reads {a} pages of a {n}-page book on {d1} and {b} pages on {d2}.")
    g.quiet()
    g.ask(f"How many pages are left?", f"How many pages does {p} still have to read?")
    g.sub("Left", n, g.add("Read", a, b))


@template
def machine_rate(g):
    (_, x), r, h, d = g.pick(TOYS + SCHOOL + FOOD + HOUSE), g.i(3, 60), g.i(2, 12), g.i(2, 7)
    g.say(f"A machine makes {g.n(r)} {x} an hour. It runs {g.n(h)} hours a day for {g.n(d)} days.",
          f"A factory makes {g.n(r)} {x} per hour and works {g.n(h)} hours every day.")
    if "factory" in g.ctx[0]:
        g.ask(f"How many {x} does it make in {g.n(d)} days?", f"How many {x} are made in {g.n(d)} days?")
    else:
        g.ask(f"How many {x} does it make?", f"How many {x} is that in total?")
    g.mul("In all", g.mul("In a day", h, r), d)


@template
def machines_defect(g):
    (_, x), m, r, h = g.pick(TOYS + SCHOOL + HOUSE), g.i(2, 9), g.i(3, 40), g.i(5, 60)
    g.need(m * r > h + 1)
    g.say(f"A workshop has {g.n(m)} machines, and each makes {g.n(r)} {x} a day. One day {h} {x} are broken.",
          f"Each of {g.n(m)} workers makes {g.n(r)} {x}. {h} of the {x} cannot be sold.")
    g.ask(f"How many good {x} are there?", f"How many {x} can be sold?")
    g.sub("Good", g.mul("Made", m, r), h)


@template
def typing(g):
    p, r, m = g.person(), g.i(10, 70), g.i(2, 30)
    s = g.i(2, 12)
    g.say(f"{p} types {r} words a minute.", f"{p} can type {r} words per minute.")
    if g.chance(.5):
        g.ask(f"How many words does {p.he} type in {g.n(m)} minutes?",
              f"How many words is that in {g.n(m)} minutes?")
        g.mul("Words", m, r)
    else:
        g.say(f"A text has {r * s} words.", f"{p.He} has to write {r * s} words.")
        g.ask("How many minutes does it take?", f"How many minutes does {p.he} need for it?")
        g.div("Minutes", r * s, r)


@template
def fill_tank(g):
    a, b, t = g.i(5, 40), g.i(2, 20), g.i(2, 20)
    g.need(a > b + 1)
    g.say(f"A pump fills a tank with {a} liters a minute, but {g.n(b)} liters a minute leak out.",
          f"Each minute {a} liters of water flow into a pool and {g.n(b)} liters flow out.")
    if g.chance(.5):
        g.ask(f"How many liters are in it after {g.n(t)} minutes if it starts empty?",
              f"It starts empty. How many liters of water does it hold after {g.n(t)} minutes?")
        g.mul("Water", t, g.sub("Gain in a minute", a, b))
    else:
        g.say(f"It holds {(a - b) * t} liters and starts empty.")
        g.ask("How many minutes does it take to fill it?", "After how many minutes is it full?")
        gain = g.sub("Gain in a minute", a, b)
        g.div("Minutes", (a - b) * t, gain)


@template
def workers(g):
    n, k, d = g.i(2, 15), g.i(2, 15), g.i(2, 7)
    what = g.pick(("trees", "fields", "walls", "letters", "windows", "cars", "bikes", "shoes", "rooms", "chairs"))
    verb = {"trees": "plant", "fields": "plow", "walls": "paint", "letters": "write", "windows": "clean", "cars": "wash", "bikes": "repair",
            "shoes": "mend", "rooms": "sweep", "chairs": "build"}[what]
    g.say(f"{n} workers each {verb} {g.n(k)} {what} a day.",
          f"Each of {n} workers can {verb} {g.n(k)} {what} a day.")
    g.ask(f"How many {what} do they {verb} in {g.n(d)} days?", f"How many {what} is that in {g.n(d)} days?")
    g.mul("In all", g.mul("In a day", n, k), d)


@template
def practice_hours(g):
    p, d, h = g.person(), g.i(2, 15), g.i(1, 12)
    m = g.pick((10, 12, 15, 20, 30, 40, 45, 60))
    g.need(m * d % 60 == 0 and m * d > 60)
    what = g.pick(("the piano", "the violin", "the flute", "chess", "singing", "the drums", "the guitar"))
    g.say(f"{p} practices {what} {m} minutes a day for {g.n(d)} days.",
          f"For {g.n(d)} days {p} practices {what} for {m} minutes each day.")
    g.ask("How many hours is that in total?", f"How many hours does {p.he} practice altogether?")
    g.div("Hours", g.mul("Minutes", d, m), 60)


@template
def hours_to_minutes(g):
    p, h, m = g.person(), g.i(2, 9), g.i(2, 58)
    what = g.pick(("A film lasts", "A flight takes", "A hike takes", "A concert lasts", "The drive takes", "A game lasts"))
    g.say(f"{what} {g.n(h)} hours and {m} minutes.")
    b = g.i(5, 50)
    if g.chance(.5):
        g.say(f"There is also a break of {b} minutes.", f"Then {p} waits another {b} minutes.")
        g.ask("How many minutes is that in total?", "How many minutes is it altogether?")
        g.add("Total", g.mul("Hours in minutes", h, 60), m, b)
    else:
        g.ask("How many minutes is that?", "How long is it in minutes?")
        g.add("Total", g.mul("Hours in minutes", h, 60), m)
    g.quiet()


@template
def bus_stops(g):
    a, b, c, d, e = g.i(5, 60), g.i(2, 30), g.i(2, 30), g.i(2, 30), g.i(2, 30)
    g.need(a > b + 1 and a - b + c > d + 1)
    v = g.pick(("bus", "train", "tram", "boat"))
    g.say(f"A {v} has {a} passengers. At the first stop {g.n(b)} get off and {g.n(c)} get on. At the second "
          f"stop {g.n(d)} get off.",
          f"There are {a} people on a {v}. At one stop {g.n(b)} people leave and {g.n(c)} come in. At the "
          f"next stop {g.n(d)} people leave.")
    g.noise_ok = False
    x = g.add("After getting on", g.sub("After getting off", a, b), c)
    if g.chance(.4):
        g.ctx[-1] = g.ctx[-1][:-1] + f" and {g.n(e)} get on."
        g.add("After the second stop", g.sub("Second stop", x, d), e)
    else:
        g.sub("After the second stop", x, d)
    g.ask(f"How many people are on the {v} now?", f"How many passengers does the {v} have then?")


@template
def temperature(g):
    a, b, c = g.i(5, 30), g.i(2, 15), g.i(2, 15)
    g.need(a + b > c + 1)
    g.say(f"In the morning it is {a} degrees. By noon it gets {g.n(b)} degrees warmer, and in the evening it "
          f"falls by {g.n(c)} degrees.",
          f"The temperature is {a} degrees at dawn. It rises by {g.n(b)} degrees and then drops by {g.n(c)} "
          "degrees.")
    g.quiet()
    g.ask("What is the temperature then?", "How many degrees is it in the end?")
    g.sub("In the end", g.add("At noon", a, b), c)


@template
def recipe(g):
    p, a, b, c = g.person(), g.i(2, 12), g.i(2, 9), g.i(2, 9)
    (_, x) = g.pick(FOOD)
    k = g.i(2, 8)
    what, unit = g.pick((("flour", "cups"), ("sugar", "spoons"), ("milk", "cups"), ("butter", "spoons"), ("eggs", "")))
    amount = f"{g.n(a)} {unit} of {what}" if unit else f"{g.n(a)} {what}"
    noun = f"{unit} of {what}" if unit else what
    if g.chance(.5):
        g.say(f"A recipe for {g.n(b)} {x} needs {amount}. {p} wants to make {b * k} {x}.",
              f"{p} uses {amount} to make {g.n(b)} {x}. Now {p.he} wants {b * k} {x}.")
        g.ask(f"How many {noun} does {p.he} need?", f"How many {noun} are needed?")
        g.mul("Needed", g.div("Batches", b * k, b), a)
    else:
        g.say(f"One batch of {x} needs {amount}. {p} bakes {g.n(k)} batches on Saturday and {g.n(c)} on "
              "Sunday.",
              f"{p} uses {amount} for each batch of {x}. {p.He} makes {g.n(k)} batches and later {g.n(c)} "
              "more.")
        g.ask(f"How many {noun} does {p.he} need?", f"How many {noun} does {p} use in all?")
        g.mul("Needed", g.add("Batches", k, c), a)


@template
def garden(g):
    p, (_, x), a, b, c = g.person(), g.pick(PLANTS), g.i(3, 20), g.i(3, 20), g.i(2, 60)
    g.say(f"{p} plants {g.n(a)} rows of {x} with {g.n(b)} in each row.",
          f"In {p}'s garden there are {g.n(a)} rows with {g.n(b)} {x} each.")
    if g.chance(.5):
        g.need(c + 1 < a * b)
        g.say(f"{c} of them die.", f"A storm destroys {c} of them.", f"{p.He} gives {c} of them away.")
        g.ask(f"How many {x} are left?", f"How many {x} remain?")
        g.sub("Left", g.mul("Planted", a, b), c)
    else:
        g.say(f"Then {p.he} plants {c} more.", f"Later {c} more {x} are added.")
        g.ask(f"How many {x} are there now?", f"How many {x} does {p} have in total?")
        g.add("Total", g.mul("Planted", a, b), c)


@template
def animal_legs(g):
    a, b = g.i(2, 40), g.i(2, 40)
    x, y = g.pick(("chickens", "ducks", "geese", "birds")), g.pick(("cows", "sheep", "goats", "horses", "pigs", "dogs"))
    g.say(f"A farm has {g.n(a)} {x} and {g.n(b)} {y}.", f"There are {g.n(a)} {x} and {g.n(b)} {y} in a yard.")
    g.quiet()
    g.ask("How many legs do they have in total?", "How many legs are there?")
    g.add("Total", g.mul(x.capitalize(), a, 2), g.mul(y.capitalize(), b, 4))


@template
def fuel(g):
    p, r, t, c = g.person(), g.i(5, 30), g.i(2, 20), g.i(2, 4)
    g.say(f"{p}'s car goes {r} km on one liter of fuel. {p.He} drives {r * t} km.",
          f"A car needs one liter of fuel for {r} km. {p} drives {r * t} km.")
    if g.chance(.5):
        g.say(f"A liter costs {g.money(c)}.", f"One liter costs {g.money(c)}.")
        g.ask("How much does the fuel cost?", f"How much does {p} pay for the fuel?")
        g.mul("Cost", g.div("Liters", r * t, r), c)
    else:
        g.ask("How many liters does the car use?", f"How many liters of fuel does {p.he} need?")
        g.div("Liters", r * t, r)


@template
def stairs(g):
    p, f, s, t = g.person(), g.i(2, 12), g.i(8, 25), g.i(2, 6)
    g.say(f"{p} lives on a high floor. There are {g.n(f)} flights of stairs with {s} steps each. {p.He} "
          f"climbs them {g.n(t)} times a day.",
          f"A tower has {g.n(f)} flights of stairs, each with {s} steps. {p} goes up {g.n(t)} times.")
    g.ask(f"How many steps does {p.he} climb in all?", f"How many steps is that in total?")
    g.mul("In all", g.mul("One climb", f, s), t)


@template
def average_three(g):
    p, m = g.person(), g.i(8, 90)
    a, b = m + g.i(-6, 6), m + g.i(-6, 6)
    c = 3 * m - a - b
    g.need(c > 1)
    what, unit = g.pick((("scores", "points"), ("reads", "pages"), ("runs", "km"), ("collects", "shells"), ("earns", "dollars"), ("walks", "miles")))
    g.say(f"{p} {what} {a} {unit} on the first day, {b} on the second day and {c} on the third day.",
          f"In three days {p} {what} {a}, {b} and {c} {unit}.")
    g.quiet()
    g.ask(f"What is the average per day?", f"How many {unit} is that per day on average?")
    g.div("Average", g.add("Total", a, b, c), 3)


@template
def three_days_doubling(g):
    p, (_, x), a, k, b = g.person(), g.pick(ANYTHING), g.i(2, 60), g.i(2, 4), g.i(2, 30)
    d1, d2, d3 = DAYS[:3] if g.chance(.5) else DAYS[2:5]
    verb = g.pick(("sells", "collects", "buys", "makes", "finds"))
    as_many = g.times(k).replace("double", "twice") + " as many"
    more = g.chance(.5)
    g.say(f"{p} {verb} {g.n(a)} {x} on {d1}. On {d2} {p.he} {verb} {as_many} as on {d1}. On {d3} {p.he} "
          f"{verb} {g.n(b)} {'more' if more else 'fewer'} than on {d2}.")
    g.quiet()
    y = g.mul(d2, k, a)
    z = g.add(d3, y, b) if more else g.sub(d3, y, b)
    g.need(z > 1)
    if g.chance(.7):
        g.ask(f"How many {x} is that in the three days?", f"How many {x} are there in total?")
        g.add("Total", a, y, z)
    else:
        g.ask(f"How many {x} does {p} have from {d3}?", f"How many {x} is that on {d3}?")


@template
def weekly_total(g):
    p, a, b = g.person(), g.i(2, 30), g.i(2, 40)
    what, unit = g.pick((("runs", "km"), ("reads", "pages"), ("swims", "laps"), ("does", "push-ups"), ("walks", "miles"), ("writes", "lines")))
    g.say(f"{p} {what} {g.n(a)} {unit} on each of the 5 school days and {g.n(b)} {unit} on each day of the "
          "weekend.",
          f"From Monday to Friday {p} {what} {g.n(a)} {unit} a day. On Saturday and Sunday {p.he} {what} "
          f"{g.n(b)} {unit} a day.")
    g.quiet()
    g.ask(f"How many {unit} is that in a week?", f"How many {unit} is that for the whole week?")
    g.add("Week", g.mul("Five days", 5, a), g.mul("Weekend", 2, b))


@template
def weeks_in_days(g):
    p, (_, x), a, w = g.person(), g.pick(FRUIT + FOOD), g.i(2, 9), g.i(2, 12)
    verb = g.pick(("eats", "bakes", "sells", "buys"))
    g.say(f"{p} {verb} {g.n(a)} {x} every day.", f"Each day {p} {verb} {g.n(a)} {x}.")
    g.ask(f"How many {x} is that in {g.n(w)} weeks?", f"How many {x} is that in a period of {g.n(w)} weeks?")
    g.mul(x.capitalize(), g.mul("Days", w, 7), a)


@template
def lasts_how_long(g):
    p, k, d, n = g.person(), g.i(2, 12), g.i(2, 20), g.i(2, 9)
    animal = g.pick(("dogs", "cats", "horses", "rabbits", "goats", "hens"))
    food = g.pick(("kg of food", "cups of food", "scoops of grain"))
    total = k * n * d
    g.need(total < 1000)
    g.say(f"{p} has {g.n(n)} {animal}. Each eats {g.n(k)} {food} a day. There are {total} {food} in the barn.",
          f"Each of {p}'s {g.n(n)} {animal} gets {g.n(k)} {food} a day, and {p.he} has {total} {food}.")
    g.quiet()
    g.ask("For how many days is that enough?", "How many days does the food last?")
    per = g.mul("In a day", n, k)
    g.need(per <= 60)
    g.div("Days", total, per)
