"""Gains and losses over several events, and unknown numbers."""
from .base import ANYTHING, BUYABLE, CLOTHES, FARM, FOOD, FRUIT, PETS, SCHOOL, TOYS, template

# Totals, gains and losses

@template
def get_and_give(g):
    (p, r), (_, x), a, b, c = g.people(2), g.pick(ANYTHING), g.size(60, 500), g.i(2, 150), g.i(2, 150)
    g.need(a + b > c + 1)
    g.say(f"{p} has {a} {x}. {r} gives {p.him} {g.n(b)} more. Then {p} loses {g.n(c)} of them.",
          f"{p} had {a} {x}, found {g.n(b)} more and gave {g.n(c)} to {r}.",
          f"{p} starts with {a} {x}. {p.He} buys {g.n(b)} more and gives {g.n(c)} to {r}.")
    g.spare = PETS + CLOTHES
    g.ask(f"How many {x} does {p} have now?", f"How many {x} does {p} have in the end?")
    g.sub("Then", g.add("First", a, b), c)


@template
def give_twice(g):
    (p, r), (_, x), b, c = g.people(2), g.pick(ANYTHING), g.i(2, 150), g.i(2, 150)
    a = b + c + g.i(2, 300)
    g.say(f"{p} has {a} {x}. {p.He} gives {g.n(b)} to {r} and sells {g.n(c)}.",
          f"{p} had {a} {x}, gave {g.n(b)} of them to {r} and lost {g.n(c)}.")
    g.spare = PETS + CLOTHES
    g.ask(f"How many {x} does {p} have left?", f"How many {x} are left?")
    g.sub("Left", g.sub("First", a, b), c)


@template
def only_one(g):
    p, (_, x), a, b = g.person(), g.pick(ANYTHING), g.size(60, 900), g.size(60, 900)
    g.spare = PETS + CLOTHES
    if g.chance(.5):
        g.say(f"{p} has {a} {x} and gets {g.n(b)} more.",
              f"There are {a} {x} in one room and {g.n(b)} {x} in another.",
              f"{p} picks {a} {x} in the morning and {g.n(b)} in the afternoon.")
        g.ask(f"How many {x} are there now?" if "room" in g.ctx[0] else f"How many {x} does {p} have now?",
              f"How many {x} is that in total?")
        g.add("Total", a, b)
    else:
        g.need(a > b + 1)
        verb = g.pick(("sells", "loses", "gives away", "breaks", "uses"))
        g.say(f"{p} has {a} {x} and {verb} {g.n(b)} of them.",
              f"There are {a} {x} on a table. {p} {verb} {g.n(b)} of them.")
        g.ask(f"How many {x} are left?", f"How many {x} remain?")
        g.sub("Left", a, b)


@template
def library(g):
    a, b, c = g.i(50, 900), g.i(5, 200), g.i(5, 200)
    g.need(a > b + 1)
    g.say(f"A library has {a} books. On Monday {b} books are borrowed and on Tuesday {c} books come back.",
          f"There are {a} books on the shelves of a library. People take {b} of them, and later {c} other "
          "books are returned.")
    g.quiet()
    g.ask("How many books are in the library now?", "How many books are there then?")
    g.add("Now", g.sub("After Monday" if "Monday" in g.ctx[0] else "After that", a, b), c)


@template
def bakery(g):
    (_, x), a, b, c, d = g.pick(FOOD), g.i(2, 20), g.i(4, 30), g.i(5, 150), g.i(2, 60)
    g.need(a * b > c + d + 1)
    g.say(f"A bakery bakes {g.n(a)} trays of {x} with {g.n(b)} on each tray. It sells {c} in the morning and "
          f"{d} in the afternoon.",
          f"A baker makes {g.n(a)} trays of {g.n(b)} {x}. {c} are sold before noon and {d} after noon.")
    g.ask(f"How many {x} are left?", f"How many {x} are not sold?")
    made = g.mul("Baked", a, b)
    g.sub("Left", made, g.add("Sold", c, d))


@template
def parking(g):
    a, b, c, d = g.i(2, 9), g.i(10, 80), g.i(5, 200), g.i(2, 50)
    g.need(a * b > c and c > d + 1)
    g.say(f"A car park has {g.n(a)} floors with {b} spaces each. {c} cars are inside, and then {d} of them "
          "leave.",
          f"There are {g.n(a)} floors in a car park, each with {b} spaces. First {c} cars park there, and "
          f"later {d} of them drive away.")
    g.quiet()
    g.ask("How many spaces are free then?", "How many free spaces are there now?")
    total = g.mul("Spaces", a, b)
    g.sub("Free", total, g.sub("Cars", c, d))


@template
def harvest(g):
    p, (_, x), a, b, c, k = g.person(), g.pick(FRUIT + FARM), g.i(2, 15), g.i(5, 40), g.i(2, 60), g.i(2, 10)
    g.need(a * b > c + 1)
    g.say(f"{p} picks {g.n(a)} baskets of {x} with {g.n(b)} in each. {c} of them are bad.",
          f"On a farm {p} fills {g.n(a)} baskets with {g.n(b)} {x} each and throws away {c} bad ones.")
    g.ask(f"How many good {x} are left?", f"How many {x} are good?")
    good = g.sub("Good", g.mul("Picked", a, b), c)
    if good % k == 0 and good // k > 1 and good < 600:
        g.say(f"The good ones are put into bags of {g.n(k)}.",
              f"{p.He} packs the good ones in bags of {g.n(k)}.")
        g.ask("How many bags is that?", "How many bags are filled?")
        g.div("Bags", good, k)


@template
def buses(g):
    a, b, c = g.i(2, 12), g.i(10, 60), g.i(2, 60)
    g.need(a * b > c + 1)
    g.say(f"A school trip uses {g.n(a)} buses with {b} seats each. {c} seats stay empty.",
          f"{g.n(a).capitalize()} buses take pupils to a museum. Each has {b} seats, and {c} seats in all are "
          "empty.")
    g.quiet()
    g.ask("How many pupils ride in the buses?", "How many people are on the buses?")
    g.sub("Riding", g.mul("Seats", a, b), c)


@template
def album(g):
    p, a, b, c = g.person(), g.i(5, 60), g.i(2, 15), g.i(5, 300)
    x = g.pick(("stickers", "photos", "stamps", "cards"))
    g.need(a * b > c + 1)
    g.say(f"{p} has an album of {a} pages. Each page has room for {g.n(b)} {x}. {p.He} already has {c} {x}.",
          f"An album has {a} pages with places for {g.n(b)} {x} on each. {p} owns {c} {x}.")
    g.quiet()
    g.ask(f"How many more {x} does {p} need to fill it?", f"How many {x} are still missing?")
    g.sub("Missing", g.mul("Places", a, b), c)


@template
def zoo_food(g):
    a, b, c, d = g.i(2, 12), g.i(2, 20), g.i(2, 12), g.i(2, 20)
    x, y = g.some(("lions", "bears", "monkeys", "seals", "elephants", "tigers", "penguins", "wolves"), 2)
    g.say(f"A zoo has {g.n(a)} {x} and {g.n(c)} {y}. Each of the {x} eats {g.n(b)} kg a day and each of the "
          f"{y} eats {g.n(d)} kg a day.")
    g.quiet()
    t = g.add("In a day", g.mul(x.capitalize(), a, b), g.mul(y.capitalize(), c, d))
    if g.chance(.5):
        g.ask("How many kg of food is needed in a week?", "How many kg do they eat in a week?")
        g.mul("In a week", 7, t)
    else:
        g.ask("How many kg of food is needed each day?", "How many kg do they eat in a day?")


@template
def plant_growth(g):
    a, r, t = g.i(3, 60), g.i(2, 15), g.i(2, 15)
    unit = g.pick(("week", "month", "day", "year"))
    x = g.pick(("plant", "tree", "vine", "sunflower", "bean plant"))
    g.quiet()
    if g.chance(.55):
        g.say(f"A {x} is {a} cm tall and grows {g.n(r)} cm every {unit}.",
              f"Today a {x} is {a} cm tall. Each {unit} it grows {g.n(r)} cm.")
        g.ask(f"How tall is it after {g.n(t)} {unit}s, in cm?",
              f"How many cm tall is it after {g.n(t)} {unit}s?")
        g.add("Height", a, g.mul("Growth", t, r))
    else:
        g.say(f"A {x} is {a} cm tall and grows {g.n(r)} cm every {unit}. It should reach {a + r * t} cm.")
        g.ask(f"How many {unit}s does that take?", f"After how many {unit}s is it {a + r * t} cm tall?")
        g.div(f"{unit.capitalize()}s", g.sub("To grow", a + r * t, a), r)


@template
def candle(g):
    a, r, t = g.i(15, 60), g.i(2, 6), g.i(2, 9)
    g.need(a > r * t + 1)
    x = g.pick(("candle", "crayon", "pencil", "bar of soap"))
    unit = "hour" if x == "candle" else g.pick(("day", "week"))
    g.quiet()
    g.say(f"A {x} is {a} cm long and gets {g.n(r)} cm shorter each {unit}.",
          f"Each {unit} a {x} of {a} cm loses {g.n(r)} cm.")
    g.ask(f"How long is it after {g.n(t)} {unit}s, in cm?", f"How many cm are left after {g.n(t)} {unit}s?")
    g.sub("Left", a, g.mul("Lost", t, r))


@template
def start_unknown(g):
    p, (_, x), a, b, c = g.person(), g.pick(ANYTHING), g.i(2, 200), g.i(2, 200), g.i(2, 90)
    if g.chance(.5):
        g.say(f"{p} gave {g.n(a)} {x} to a friend and {g.n(b)} to {p.his} brother. Now {p.he} has {c} left.",
              f"After selling {g.n(a)} {x} and giving away {g.n(b)}, {p} has {c} {x} left.")
        g.ask(f"How many {x} did {p} have at first?", f"How many {x} did {p.he} have in the beginning?")
        g.add("At first", a, b, c)
    else:
        g.need(c + a > b + 1 and c > 2)
        g.say(f"{p} bought {g.n(b)} {x} and then used {g.n(a)}. Now {p.he} has {c} {x}.",
              f"{p} found {g.n(b)} {x} and lost {g.n(a)} of {p.his} {x}. Now there are {c}.")
        g.ask(f"How many {x} did {p} have at first?", f"How many {x} did {p.he} have before?")
        g.sub("At first", g.add("Before losing" if "lost" in g.ctx[0] else "Before using", c, a), b)
    g.quiet()


@template
def guess_number(g):
    p, n, k, c = g.person(), g.i(2, 60), g.i(2, 9), g.i(2, 60)
    g.quiet()
    kind = g.i(0, 3)
    if kind == 0:
        g.say(f"{p} thinks of a number, multiplies it by {g.n(k)} and adds {g.n(c)}. The result is "
              f"{n * k + c}.",
              f"A number times {k} plus {c} is {n * k + c}.")
        g.ask("What is the number?", "Which number is it?")
        g.div("Number", g.sub("Before adding", n * k + c, c), k)
    elif kind == 1:
        g.need(n * k > c + 1)
        g.say(f"{p} thinks of a number, multiplies it by {g.n(k)} and subtracts {g.n(c)}. The result is "
              f"{n * k - c}.",
              f"A number times {k} minus {c} is {n * k - c}.")
        g.ask("What is the number?", "Which number is it?")
        g.div("Number", g.add("Before subtracting", n * k - c, c), k)
    elif kind == 2:
        g.say(f"{p} thinks of the number {n}, adds {g.n(c)} and multiplies the sum by {g.n(k)}.",
              f"Take {n}, add {g.n(c)}, and multiply by {g.n(k)}.")
        g.ask("What is the result?", "What number comes out?")
        g.mul("Result", k, g.add("Sum", n, c))
    else:
        g.say(f"{p} takes the number {n}, multiplies it by {g.n(k)} and adds {g.n(c)}.",
              f"Multiply {n} by {g.n(k)} and add {g.n(c)}.")
        g.ask("What is the result?", "What number comes out?")
        g.add("Result", g.mul("Product", n, k), c)


@template
def bags_bought_lost(g):
    p, (_, x), a, b, c, d = g.person(), g.pick(TOYS + FOOD), g.i(2, 12), g.i(3, 25), g.i(2, 30), g.i(2, 30)
    g.need(a * b > c + d + 1)
    g.say(f"{p} buys {g.n(a)} bags of {x} with {g.n(b)} in each bag. {p.He} gives {g.n(c)} to a friend and "
          f"loses {g.n(d)}.",
          f"There are {g.n(b)} {x} in a bag. {p} has {g.n(a)} bags, gives {g.n(c)} {x} away and drops "
          f"{g.n(d)}.")
    g.spare = PETS + CLOTHES
    g.ask(f"How many {x} does {p} have left?", f"How many {x} are left?")
    g.sub("Left", g.sub("After giving", g.mul("Bought", a, b), c), d)


@template
def collection_growth(g):
    p, (_, x), a, r, t, c = g.person(), g.pick(TOYS), g.i(5, 200), g.i(2, 15), g.i(2, 15), g.i(2, 60)
    unit = g.pick(("week", "month", "day"))
    g.say(f"{p} has {a} {x} and gets {g.n(r)} more every {unit}.",
          f"{p} collects {x}. {p.He} has {a} and buys {g.n(r)} each {unit}.")
    y = g.add("Then", a, g.mul("New ones", t, r))
    if g.chance(.4) and y > c + 1:
        g.say(f"After {g.n(t)} {unit}s {p.he} sells {c} of them.",
              f"After {g.n(t)} {unit}s {p.he} gives {c} away.")
        g.ask(f"How many {x} does {p} have then?", f"How many {x} are left?")
        g.sub("Left", y, c)
    else:
        g.ask(f"How many {x} does {p.he} have after {g.n(t)} {unit}s?",
              f"How many {x} is that after {g.n(t)} {unit}s?")


@template
def shop_stock(g):
    (_, x), a, b, c, k = g.pick(BUYABLE), g.i(40, 600), g.i(5, 150), g.i(2, 20), g.i(2, 12)
    g.need(a > b + 1)
    g.say(f"A shop has {a} {x}. It sells {b} of them and then gets {g.n(c)} boxes with {g.n(k)} {x} each.",
          f"There are {a} {x} in a shop. After {b} are sold, a truck brings {g.n(c)} boxes of {g.n(k)} {x}.")
    g.quiet()
    g.ask(f"How many {x} does the shop have now?", f"How many {x} are in the shop then?")
    left = g.sub("After selling", a, b)
    g.add("Now", left, g.mul("New ones", c, k))


@template
def tables_and_guests(g):
    p, a, b, c, d = g.person(), g.i(2, 15), g.i(2, 12), g.i(2, 10), g.i(2, 8)
    g.say(f"For a party {p} sets {g.n(a)} tables with {g.n(b)} chairs each and {g.n(c)} tables with {g.n(d)} "
          "chairs each.",
          f"There are {g.n(a)} tables with {g.n(b)} chairs and {g.n(c)} tables with {g.n(d)} chairs in a hall.")
    t = g.add("Chairs", g.mul("First tables", a, b), g.mul("Other tables", c, d))
    n = g.i(2, 60)
    g.quiet()
    if g.chance(.4) and t > n + 1:
        g.say(f"{n} guests come." if n > 1 else "", f"{n} people sit down.")
        g.ask("How many chairs stay empty?", "How many chairs are free?")
        g.sub("Empty", t, n)
    else:
        g.ask("How many chairs are there?", "How many people can sit?")


@template
def school_supplies(g):
    k, a, b = g.i(5, 35), g.i(2, 9), g.i(2, 9)
    (_, x), (_, y) = g.some(SCHOOL, 2)
    g.say(f"A teacher gives each of {k} pupils {g.n(a)} {x} and {g.n(b)} {y}.",
          f"Each of the {k} children in a class needs {g.n(a)} {x} and {g.n(b)} {y}.")
    g.quiet()
    if g.chance(.6):
        g.ask("How many things is that in total?", f"How many {x} and {y} is that together?")
        g.mul("Together", k, g.add("For one", a, b))
    else:
        g.need(a > b)
        g.ask(f"How many more {x} than {y} are needed?")
        g.mul("More", k, g.sub("More for one", a, b))


@template
def water_use(g):
    p, a, b, d = g.person(), g.i(2, 30), g.i(2, 30), g.i(2, 14)
    n = (a + b) * d + g.i(2, 100)
    g.say(f"A barrel holds {n} liters of water. Each day {p} uses {a} liters for the garden and {b} liters "
          "for the animals.",
          f"{p} has {n} liters of water and uses {a} liters in the morning and {b} liters in the evening of "
          "each day.")
    g.quiet()
    g.ask(f"How many liters are left after {g.n(d)} days?",
          f"How many liters of water are there after {g.n(d)} days?")
    day = g.add("In a day", a, b)
    g.sub("Left", n, g.mul("Used", d, day))


@template
def two_savers(g):
    (p, r), a, b, t = g.people(2), g.i(3, 30), g.i(3, 30), g.i(2, 15)
    unit = g.pick(("week", "month", "day"))
    g.quiet()
    g.say(f"{p} saves {g.money(a)} a {unit} and {r} saves {g.money(b)} a {unit}.",
          f"Every {unit} {p} puts {g.money(a)} in a jar and {r} puts in {g.money(b)}.")
    if a > b + 1 and g.chance(.4):
        g.ask(f"How much more than {r} does {p} have after {g.n(t)} {unit}s?",
              f"After {g.n(t)} {unit}s, how many dollars more does {p} have?")
        g.mul("Difference", t, g.sub(f"Each {unit}", a, b))
    else:
        g.ask(f"How much do they have together after {g.n(t)} {unit}s?",
              f"How many dollars is that in {g.n(t)} {unit}s?")
        g.mul("Together", t, g.add(f"Each {unit}", a, b))


@template
def meet_in_time(g):
    a, b, t = g.i(3, 60), g.i(3, 60), g.i(2, 9)
    p, r = g.people(2)
    g.quiet()
    if g.chance(.5):
        g.say(f"{p} and {r} start at the same place and go in opposite directions, {p} at {a} km per hour and "
              f"{r} at {b} km per hour.")
        g.ask(f"How many km apart are they after {g.n(t)} hours?",
              f"How far apart are they after {g.n(t)} hours, in km?")
        g.mul("Apart", t, g.add("In an hour", a, b))
    else:
        g.need(a + b <= 60)
        g.say(f"{p} and {r} are {(a + b) * t} km apart and drive towards each other, {p} at {a} km per hour "
              f"and {r} at {b} km per hour.")
        g.ask("After how many hours do they meet?", "In how many hours do they meet?")
        both = g.add("In an hour", a, b)
        g.div("Hours", (a + b) * t, both)
