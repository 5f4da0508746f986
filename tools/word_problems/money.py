"""Shopping, change, wages, prices and tickets."""
import math

from .base import BUYABLE, CLOTHES, FARM, FOOD, FRUIT, PRICEY, SCHOOL, TOYS, template

# Shopping and money

@template
def buy_one_kind(g):
    p, (_, x), q, c = g.person(), g.pick(BUYABLE), g.size(20, 90), g.i(2, 30)
    g.say(f"{p} buys {g.n(q)} {x} for {g.money(c)} each.",
          f"{p} buys {g.n(q)} {x}. Each one costs {g.money(c)}.",
          f"The price of one of the {x} is {g.money(c)}. {p} wants {g.n(q)} of them.")
    g.ask(f"How much does {p.he} pay?",
          f"How much do the {x} cost in total?",
          f"How many dollars does {p} need?",
          f"What is the total cost?")
    g.mul(f"Cost of the {x}", q, c)


@template
def buy_two_kinds(g):
    p, ((_, x), (_, y)) = g.person(), g.some(BUYABLE, 2)
    a, b, c, d = g.i(2, 20), g.i(2, 20), g.i(2, 15), g.i(2, 15)
    g.say(f"{p} buys {g.n(a)} {x} for {g.money(c)} each and {g.n(b)} {y} for {g.money(d)} each.",
          f"At the shop {x} cost {g.money(c)} each and {y} cost {g.money(d)} each. {p} buys {g.n(a)} {x} and "
          f"{g.n(b)} {y}.",
          f"{p} went to the market and bought {g.n(a)} {x} at {g.money(c)} each. {p.He} also bought {g.n(b)} "
          f"{y} at {g.money(d)} each.")
    g.ask(f"How much does {p} spend in total?",
          f"How much money did {p.he} spend altogether?",
          "What is the total cost?",
          f"How many dollars does {p.he} pay in all?")
    g.add("Total", g.mul(f"Cost of the {x}", a, c), g.mul(f"Cost of the {y}", b, d))


@template
def buy_three_kinds(g):
    p, ((_, x), (_, y), (z, _)) = g.person(), g.some(BUYABLE, 3)
    a, b, c, d, e = g.i(2, 12), g.i(2, 12), g.i(2, 12), g.i(2, 12), g.i(3, 60)
    g.say(f"{p} buys {g.n(a)} {x} at ${c} each, {g.n(b)} {y} at ${d} each and one {z} for ${e}.",
          f"{p} needs {g.n(a)} {x}, {g.n(b)} {y} and one {z}. Each of the {x} costs ${c}, each of the {y} "
          f"costs ${d} and the {z} costs ${e}.")
    g.ask(f"How much does {p.he} spend in total?", "How much is the whole bill?", f"How much does {p} pay?")
    g.add("Total", g.mul(f"Cost of the {x}", a, c), g.mul(f"Cost of the {y}", b, d), e)


@template
def change_one_kind(g):
    p, (_, x), q, c = g.person(), g.pick(BUYABLE), g.i(2, 20), g.i(2, 20)
    bill = g.pick((10, 20, 50, 100, 200, 500))
    g.need(bill // 6 < q * c < bill)
    g.say(f"{p} buys {g.n(q)} {x} for {g.money(c)} each and pays with {g.money(bill)}.",
          f"{p} has a {bill} dollar bill. {p.He} buys {g.n(q)} {x} that cost {g.money(c)} each.",
          f"One of the {x} costs {g.money(c)}. {p} takes {g.n(q)} of them and gives the clerk {g.money(bill)}.")
    g.ask(f"How much change does {p.he} get?",
          f"How much change does {p} get back?",
          f"How much money does {p.he} have left?")
    g.sub("Change", bill, g.mul(f"Cost of the {x}", q, c))


@template
def change_two_kinds(g):
    p, ((_, x), (_, y)) = g.person(), g.some(BUYABLE, 2)
    a, b, c, d, bill = g.i(2, 9), g.i(2, 9), g.i(2, 12), g.i(2, 12), g.pick((20, 50, 100, 200))
    g.need(a * c + b * d < bill)
    g.say(f"{p} buys {g.n(a)} {x} at {g.money(c)} each and {g.n(b)} {y} at {g.money(d)} each. {p.He} pays "
          f"with {g.money(bill)}.",
          f"{p} goes shopping with {g.money(bill)}. {p.He} buys {g.n(a)} {x} for {g.money(c)} each and "
          f"{g.n(b)} {y} for {g.money(d)} each.")
    g.ask(f"How much change does {p.he} get?",
          f"How much money is left?",
          f"How many dollars does {p} have left?")
    g.sub("Change", bill, g.add("Total", g.mul(f"Cost of the {x}", a, c), g.mul(f"Cost of the {y}", b, d)))


@template
def money_left(g):
    p, ((x, _), (y, _)) = g.person(), g.some(PRICEY + CLOTHES, 2)
    a, b = g.i(5, 200), g.i(5, 200)
    m = a + b + g.i(2, 300)
    g.say(f"{p} has {g.money(m)}. {p.He} spends {g.money(a)} on a {x} and {g.money(b)} on a {y}.",
          f"{p} got {g.money(m)} for {p.his} birthday. {p.He} bought a {x} for {g.money(a)} and a {y} for "
          f"{g.money(b)}.")
    g.ask(f"How much money does {p} have left?",
          "How many dollars are left?",
          f"How much does {p.he} still have?")
    g.sub("Left", m, g.add("Spent", a, b))


@template
def save_for(g):
    p, (x, _), w, t, s = g.person(), g.pick(PRICEY), g.i(3, 30), g.i(2, 20), g.i(2, 80)
    unit = g.pick(("week", "month", "day"))
    price = w * t + s
    g.say(f"{p} wants to buy a {x} that costs {g.money(price)}. {p.He} already has {g.money(s)} and saves "
          f"{g.money(w)} every {unit}.",
          f"A {x} costs {g.money(price)}. {p} has {g.money(s)} and can save {g.money(w)} each {unit}.")
    g.ask(f"How many {unit}s does {p.he} need to save?", f"In how many {unit}s can {p} buy the {x}?",
          f"How many {unit}s will it take until {p.he} can buy it?")
    g.div(f"{unit.capitalize()}s", g.sub("Still needed", price, s), w)


@template
def earn_hourly(g):
    p, r, h, b = g.person(), g.i(6, 40), g.i(2, 12), g.i(5, 60)
    job = g.pick(("babysitting", "mowing lawns", "walking dogs", "cleaning windows", "painting fences", "tutoring", "washing cars"))
    d = g.i(2, 6)
    if g.chance(.5):
        g.say(f"{p} earns {g.money(r)} an hour {job}. Yesterday {p.he} worked {g.n(h)} hours and got a tip of "
              f"{g.money(b)}.",
              f"{p} gets {g.money(r)} per hour for {job}. {p.He} works for {g.n(h)} hours and also receives a "
              f"{g.money(b)} bonus.")
        g.ask(f"How much did {p.he} earn in total?", f"How much money does {p} make?")
        g.add("Total", g.mul("Pay", h, r), b)
    else:
        g.say(f"{p} earns {g.money(r)} an hour {job}. {p.He} works {g.n(h)} hours a day for {g.n(d)} days.",
              f"{p} works {g.n(h)} hours a day {job} and is paid {g.money(r)} per hour. {p.He} does this for "
              f"{g.n(d)} days.")
        g.ask(f"How much does {p} earn?", f"How many dollars does {p.he} make in total?")
        g.mul("Pay", g.mul("Hours", h, d), r)


@template
def two_jobs(g):
    p, r, s, h, k = g.person(), g.i(6, 25), g.i(6, 25), g.i(2, 12), g.i(2, 12)
    g.say(f"{p} has two jobs. {p.He} earns ${r} an hour at the library and ${s} an hour at the cafe. This "
          f"week {p.he} worked {g.n(h)} hours at the library and {g.n(k)} hours at the cafe.",
          f"{p} is paid {g.money(r)} per hour for gardening and {g.money(s)} per hour for painting. {p.He} "
          f"gardens for {g.n(h)} hours and paints for {g.n(k)} hours.")
    g.ask(f"How much does {p} earn in total?", f"How much money does {p.he} make altogether?")
    g.add("Total", g.mul("First job", h, r), g.mul("Second job", k, s))


@template
def profit(g):
    p, (_, x), q, c, k = g.person(), g.pick(FOOD + FARM + FRUIT + TOYS), g.i(5, 60), g.i(2, 12), g.i(5, 90)
    g.need(q * c > k + 1)
    g.say(f"{p} sells {q} {x} for {g.money(c)} each. Making them cost {p.him} {g.money(k)}.",
          f"{p} spent {g.money(k)} on supplies. {p.He} then sold {q} {x} at {g.money(c)} each.")
    g.ask(f"How much profit did {p.he} make?",
          f"What is {p.his} profit?",
          f"How much does {p} earn after paying the costs?")
    g.sub("Profit", g.mul("Sales", q, c), k)


@template
def discount_each(g):
    p, (_, x), q, c = g.person(), g.pick(BUYABLE), g.i(2, 15), g.i(6, 40)
    d = g.i(2, c - 2)
    g.say(f"{x.capitalize()} usually cost {g.money(c)} each, but today each is {g.money(d)} cheaper. {p} buys "
          f"{g.n(q)} {x}.",
          f"{p} buys {g.n(q)} {x}. The normal price is {g.money(c)} each, and {p.he} has a coupon for "
          f"{g.money(d)} off each one.")
    g.ask(f"How much does {p} pay?", f"How much does {p.he} spend?", "What is the total price?")
    g.mul("Total", q, g.sub("Price of one", c, d))


@template
def percent_off(g):
    p, (x, _) = g.person(), g.pick(PRICEY)
    pc = g.pick((10, 20, 25, 50, 30, 40, 5))
    base = 100 // math.gcd(100, pc)
    c = base * g.i(2, 400 // base)
    g.say(f"A {x} costs {g.money(c)}. It is on sale for {pc}% off.",
          f"{p} buys a {x}. The price is {g.money(c)}, but there is a discount of {pc}%.",
          f"The shop sells a {x} for {g.money(c)} and gives {pc} percent off.")
    if g.chance(.3):
        g.ask("How much is the discount in dollars?", f"How many dollars does one save?")
        percent_of(g, "Discount", c, pc)
    else:
        g.ask(f"How much does {p} pay for it?" if any(p.n in s for s in g.ctx) else "What is the sale price?",
              f"How much does the {x} cost now?")
        g.sub("Price now", c, percent_of(g, "Discount", c, pc))


def percent_of(g, label, c, pc):
    """pc percent of c in steps a child does: a tenth, a quarter, a half, then how many of them."""
    if pc == 50:
        return g.div(label, c, 2)
    if pc == 25:
        return g.div(label, c, 4)
    if pc == 75:
        return g.mul(label, 3, g.div("A quarter", c, 4))
    if pc == 10:
        return g.div(label, c, 10)
    if pc == 20:
        return g.div(label, c, 5)
    if pc == 5:
        return g.div(label, c, 20)
    if c % 10 == 0:
        return g.mul(label, pc // 10, g.div("A tenth", c, 10))
    return g.mul(label, pc // 20, g.div("A fifth", c, 5)) if pc % 20 == 0 else g.need(False) or 0


@template
def price_difference(g):
    p, ((_, x), (_, y)) = g.person(), g.some(BUYABLE, 2)
    a, b, c, d = g.i(2, 15), g.i(2, 15), g.i(2, 20), g.i(2, 20)
    g.need(a * c > b * d + 1)
    g.say(f"{p} buys {g.n(a)} {x} for {g.money(c)} each and {g.n(b)} {y} for {g.money(d)} each.",
          f"{p} pays {g.money(c)} each for {g.n(a)} {x} and {g.money(d)} each for {g.n(b)} {y}.")
    g.ask(f"How much more did {p.he} spend on the {x} than on the {y}?",
          f"How much more do the {x} cost than the {y}?")
    g.sub("Difference", g.mul(f"Cost of the {x}", a, c), g.mul(f"Cost of the {y}", b, d))


@template
def share_bill(g):
    p, k, each, tip = g.person(), g.i(2, 10), g.i(5, 40), g.i(2, 30)
    total = k * each - tip
    g.need(total > tip)
    g.say(f"{p} and {p.his} friends eat at a restaurant, {g.n(k)} people in all. The bill is {g.money(total)} "
          f"and they leave a tip of {g.money(tip)}. They share the cost equally.",
          f"A group of {g.n(k)} friends has lunch. The food costs {g.money(total)} and the drinks cost "
          f"{g.money(tip)}. They split the bill equally.")
    g.ask("How much does each person pay?", "How many dollars does each of them pay?")
    g.div("Each", g.add("Total", total, tip), k)


@template
def packs_needed(g):
    p, (_, x), k, n, c = g.person(), g.pick(FOOD + SCHOOL + TOYS), g.i(3, 12), g.i(2, 15), g.i(2, 15)
    g.say(f"{x.capitalize()} come in packs of {g.n(k)}. A pack costs {g.money(c)}. {p} needs {k * n} {x}.",
          f"{p} needs {k * n} {x} for a party. The shop sells them in packs of {g.n(k)} for {g.money(c)} a "
          "pack.")
    g.ask(f"How much does {p.he} have to pay?", f"How much will the {x} cost?", f"How much does {p} spend?")
    g.mul("Cost", g.div("Packs", k * n, k), c)


@template
def unit_price(g):
    p, (_, x), a, c, b = g.person(), g.pick(BUYABLE), g.i(2, 12), g.i(2, 15), g.i(2, 25)
    g.need(a != b)
    g.say(f"The cost of {g.n(a)} {x} is {g.money(a * c)}.",
          f"{p} pays {g.money(a * c)} for {g.n(a)} {x}.",
          f"A shop sells {g.n(a)} {x} for {g.money(a * c)}.")
    g.ask(f"How much do {g.n(b)} {x} cost at the same price?",
          f"At this price, how much would {g.n(b)} {x} cost?",
          f"What is the price of {g.n(b)} {x}?")
    g.mul(f"{b} {x}", b, g.div("Price of one", a * c, a))


@template
def tickets(g):
    a, k, c, d = g.i(2, 40), g.i(2, 40), g.i(6, 25), g.i(2, 12)
    g.need(c > d)
    place = g.pick(("zoo", "museum", "cinema", "circus", "pool", "theater", "fair", "aquarium", "concert", "game"))
    g.say(f"A ticket to the {place} costs {g.money(c)} for adults and {g.money(d)} for children. A group of "
          f"{g.n(a)} adults and {g.n(k)} children goes in.",
          f"The {place} charges {g.money(c)} per adult and {g.money(d)} per child. Today {a} adults and {k} "
          "children came.")
    g.ask("How much do they pay in total?",
          "How much do the tickets cost altogether?",
          "How much money is paid for the tickets?")
    g.add("Total", g.mul("Adults", a, c), g.mul("Children", k, d))


@template
def tickets_group(g):
    n, k, c, d = g.i(8, 60), g.i(3, 40), g.i(6, 20), g.i(2, 10)
    g.need(k + 1 < n and c > d)
    place = g.pick(("zoo", "museum", "cinema", "circus", "pool", "theater", "fair"))
    g.say(f"A group of {n} people visits the {place}. {k} of them are children and the rest are adults. "
          f"Adults pay {g.money(c)} and children pay {g.money(d)}.",
          f"There are {n} people in line at the {place}, {k} of them children. A child's ticket is "
          f"{g.money(d)} and an adult's ticket is {g.money(c)}.")
    g.ask("How much do they pay in total?", "What is the total price of the tickets?")
    adults = g.sub("Adults", n, k)
    g.add("Total", g.mul("Adults pay", adults, c), g.mul("Children pay", k, d))


@template
def price_times(g):
    p, ((x, _), (y, _)), k, c = g.person(), g.some(PRICEY, 2), g.i(2, 6), g.i(4, 90)
    g.say(f"A {x} costs {g.times(k)} as much as a {y}. The {y} costs {g.money(c)}." if k > 2 or g.chance(.5) else f"A {x} costs twice as much as a {y}. The {y} costs {g.money(c)}.")
    g.ctx[-1] = g.ctx[-1].replace("double as much", "twice as much")
    if g.chance(.6):
        g.ask("How much do the two cost together?", f"How much does {p} pay for one of each?")
        g.add("Together", g.mul(f"The {x}", k, c), c)
    else:
        g.ask(f"How much more does the {x} cost?", f"What is the difference between the two prices?")
        g.sub("Difference", g.mul(f"The {x}", k, c), c)


@template
def allowance(g):
    p, w, a, s = g.person(), g.i(3, 30), g.i(3, 30), g.i(3, 150)
    g.need(w * a > s + 1)
    thing = g.pick(("a book", "a gift", "snacks", "a game", "new shoes", "a movie night", "art supplies"))
    g.say(f"{p} gets {g.money(a)} of pocket money each week. After {g.n(w)} weeks {p.he} spends {g.money(s)} "
          f"on {thing}.",
          f"{p} saves {g.money(a)} a week for {g.n(w)} weeks and then pays {g.money(s)} for {thing}.")
    g.ask(f"How much money is left?", f"How much does {p} have left?")
    g.sub("Left", g.mul("Saved", w, a), s)


@template
def coins(g):
    p, kinds = g.person(), g.some((("quarter", 25), ("dime", 10), ("nickel", 5)), 2)
    a, b = g.i(2, 20), g.i(2, 20)
    g.say(f"{p} finds {g.n(a)} {kinds[0][0]}s and {g.n(b)} {kinds[1][0]}s in a jar.",
          f"{p} has {g.n(a)} {kinds[0][0]}s and {g.n(b)} {kinds[1][0]}s.")
    g.ask("How many cents is that in total?",
          f"How many cents does {p} have?",
          "How much are they worth in cents?")
    g.add("Total", g.mul(f"{kinds[0][0].capitalize()}s", a, kinds[0][1]), g.mul(f"{kinds[1][0].capitalize()}s", b, kinds[1][1]))


@template
def fundraiser(g):
    (_, x), a, b, c = g.pick(FOOD), g.i(5, 40), g.i(5, 40), g.i(2, 8)
    goal = (a + b) * c + g.i(5, 300)
    g.say(f"A class wants to raise {g.money(goal)}. The pupils sell {x} for {g.money(c)} each. They sell {a} "
          f"on the first day and {b} on the second day.",
          f"The goal of a bake sale is {g.money(goal)}. In the morning {a} {x} are sold and in the afternoon "
          f"{b}. Each one costs {g.money(c)}.")
    g.ask("How much money is still missing?", "How many more dollars do they need to reach the goal?")
    g.sub("Missing", goal, g.mul("Raised", g.add("Sold", a, b), c))


@template
def base_fee(g):
    p, f, r, h = g.person(), g.i(3, 60), g.i(2, 25), g.i(2, 14)
    x = g.pick(("bicycle", "boat", "kayak", "car", "tent", "scooter", "canoe", "van"))
    unit = g.pick(("hour", "day"))
    g.say(f"Renting a {x} costs {g.money(f)} plus {g.money(r)} per {unit}. {p} rents one for {g.n(h)} {unit}s.",
          f"{p} rents a {x} for {g.n(h)} {unit}s. There is a fee of {g.money(f)} and each {unit} costs "
          f"{g.money(r)}.")
    g.ask(f"How much does {p} pay?", "What is the total cost?", f"How much does {p.he} have to pay in total?")
    g.add("Total", g.mul(f"{unit.capitalize()}s", h, r), f)


@template
def yearly_cost(g):
    p, c, y, f = g.person(), g.i(4, 60), g.i(2, 4), g.i(5, 60)
    what = g.pick(("phone plan", "gym", "music service", "internet plan", "film club", "newspaper"))
    g.say(f"{p} pays {g.money(c)} a month for a {what}.", f"A {what} costs {p} {g.money(c)} every month.")
    if g.chance(.5):
        g.say(f"There was also a starting fee of {g.money(f)}.",
              f"In the beginning {p.he} paid {g.money(f)} once.")
        g.ask(f"How much does {p} pay in the first year?", "How much is that in the first year, with the fee?")
        g.add("Total", g.mul("Months", 12, c), f)
    else:
        g.ask(f"How much does {p} pay in {g.n(y)} years?", f"How much is that for {g.n(y)} years?")
        g.mul("Cost", g.mul("Months", y, 12), c)


@template
def bought_and_resold(g):
    p, (_, x), q, c, d = g.person(), g.pick(BUYABLE), g.i(2, 30), g.i(2, 15), g.i(2, 15)
    g.say(f"{p} buys {g.n(q)} {x} for {g.money(c)} each and sells them for {g.money(c + d)} each.",
          f"A shop buys {g.n(q)} {x} at {g.money(c)} each and sells all of them at {g.money(c + d)} each.")
    g.ask("How much is the profit?", "What is the profit on all of them?")
    g.mul("Profit", q, g.sub("Profit on one", c + d, c))


@template
def two_shoppers(g):
    (p, r), (_, x) = g.people(2), g.pick(BUYABLE)
    a, b, c = g.i(2, 20), g.i(2, 20), g.i(2, 15)
    g.say(f"{p} buys {g.n(a)} {x} and {r} buys {g.n(b)} {x}. Each of them costs {g.money(c)}.",
          f"One of the {x} costs {g.money(c)}. {p} takes {g.n(a)} and {r} takes {g.n(b)}.")
    if a > b + 1 and g.chance(.4):
        g.ask(f"How much more does {p} pay than {r}?", f"How many dollars more than {r} does {p} spend?")
        g.sub("Difference", g.mul(p.n, a, c), g.mul(r.n, b, c))
    else:
        g.ask("How much do they pay together?", "How much do they spend in total?")
        g.mul("Cost", g.add("Number", a, b), c)
