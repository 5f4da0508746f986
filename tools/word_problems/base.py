"""The templates of the word problems: each draws numbers, tells a story in one of several wordings, and works it out.

A template is a function of one G (the problem being made).  It draws with g.i / g.pick / g.person, tells with g.say
(one of the wordings given), asks with g.ask, and computes with g.add / g.sub / g.mul / g.div, which also write the
worked steps; the last result is the answer.  g.need(condition) drops a draw whose numbers do not suit.
"""

_GIRLS = ("Anna Maria Emma Olivia Sophia Mia Lily Grace Zoe Nora Ella Clara Julia Laura Sarah Emily Alice Lucy Rosa Nina "
          "Amy Jane Kate Lisa Maya Ruth Sara Tina Vera Wendy Betty Carla Diana Eva Fiona Gina Hannah Irene Jenny Karen "
          "Linda Megan Natalia Paula Rachel Susan Tanya Ursula Violet Yuki Aisha Priya Mei Fatima Ingrid Chloe Ava "
          "Isabel Elena Sofia Janet Mary Helen Molly Daisy Heidi Leila Carmen").split()
_BOYS = ("Tom Ben Sam Max Leo Jack Noah Liam Lucas Oscar Adam Alex Paul Peter David Daniel James John Mark Mike Nick Omar "
         "Ryan Tim Victor Will Carlos Diego Eric Frank George Henry Ivan Jacob Kevin Luis Martin Nathan Oliver Pedro "
         "Robert Simon Tony Walter Andre Ahmed Hiro Raj Wei Hugo Felix Karl Bob Joe Steve Ethan Caleb Aaron Brian Chris "
         "Dylan Greg Ian Josh Kyle Logan").split()
_SYLLABLES = "ba be bo da de do fa ga jo ka ki la le li lo ma me mi mo na ne ni no ra re ri ro sa se so ta te ti to va ve vi za".split()
WORDS = ("zero one two three four five six seven eight nine ten eleven twelve").split()
TIMES = {2: ("twice", "two times", "2 times", "double"), 3: ("three times", "3 times"), 4: ("four times", "4 times"),
          5: ("five times", "5 times"), 6: ("six times", "6 times")}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def items(text):
    out = []
    for word in text.split(","):
        one, _, many = word.strip().partition("/")
        out.append((one, many or one + "s"))
    return out


FRUIT = items("apple, orange, banana, pear, peach/peaches, lemon, mango/mangoes, plum, melon, kiwi, "
              "fig, lime, cherry/cherries")
SCHOOL = items("pen, pencil, notebook, eraser, ruler, marker, folder, crayon, book, sketchbook, "
               "paintbrush/paintbrushes, glue stick, binder")
TOYS = items("marble, toy car, doll, puzzle, ball, kite, balloon, sticker, card, stamp, coin, shell, "
             "button, bead, model plane, teddy bear, seashell, block, robot, yo-yo")
CLOTHES = items("shirt, hat, scarf/scarves, sock, jacket, dress/dresses, belt, sweater, cap, glove, "
                "skirt, tie, coat")
FOOD = items("cookie, muffin, cupcake, sandwich/sandwiches, donut, pie, bagel, pizza, burger, cake, "
             "brownie, pancake, taco, roll, candy/candies, chocolate bar, hot dog, pretzel")
FARM = items("tomato/tomatoes, potato/potatoes, carrot, onion, pumpkin, cabbage, cucumber, pepper, "
             "egg, turnip, radish/radishes, beet")
HOUSE = items("plate, cup, chair, lamp, candle, bowl, spoon, towel, pillow, vase, mug, basket, "
              "blanket, picture frame, plant, brick, bottle, jar, box/boxes, bag")
PETS = items("fish/fish, cat, dog, rabbit, hamster, bird, turtle, goldfish/goldfish, parrot, mouse/mice")
PLANTS = items("rose, tulip, tree, bush/bushes, flower, sunflower, daisy/daisies, lily/lilies, "
               "cactus/cacti, seedling")
ANYTHING = FRUIT + SCHOOL + TOYS + FOOD + FARM + HOUSE
BUYABLE = FRUIT + SCHOOL + TOYS + CLOTHES + FOOD + HOUSE
HOLDERS = items("box/boxes, bag, basket, crate, jar, tray, pack, carton, bucket, shelf/shelves, "
                "drawer, bin, case, sack")
PRICEY = items("bicycle, guitar, skateboard, tablet, camera, video game, game console, tent, phone, "
               "jacket, watch/watches, telescope, drum set, violin, scooter, desk, printer, sofa, "
               "bed, lamp")


class Person:
    __slots__ = ("n", "he", "his", "him", "He", "His")

    def __init__(self, n, girl):
        self.n = n
        self.he, self.his, self.him, self.He, self.His = (("she", "her", "her", "She", "Her") if girl
                                                          else ("he", "his", "him", "He", "His"))

    def __str__(self):
        return self.n

    __format__ = lambda self, spec: self.n


class G:
    """One problem in the making: a seeded source of choices, the story so far, and the worked steps."""

    def __init__(self, rng):
        self.rnd = rng.random
        self.ctx, self.question, self.steps = [], "", []
        self.ok, self.value = True, None
        self.noise_ok, self.who, self.spare = True, None, None

    # Drawing
    def i(self, low, high, step=1):
        return low + step * int(self.rnd() * ((high - low) // step + 1))

    def pick(self, seq):
        return seq[int(self.rnd() * len(seq))]

    def chance(self, p):
        return self.rnd() < p

    def some(self, seq, k):
        out = []
        while len(out) < k:
            x = self.pick(seq)
            if x not in out:
                out.append(x)
        return out

    def size(self, small=20, big=300):
        """A count: usually below `small`, sometimes up to `big`."""
        return self.i(2, small) if self.rnd() < .55 else self.i(5, max(6, big // 4)) if self.rnd() < .6 else self.i(10, big)

    def person(self):
        girl = self.rnd() < .5
        if self.rnd() < .05:
            n = "".join(self.pick(_SYLLABLES) for _ in range(self.i(2, 3))).capitalize()
        else:
            n = self.pick(_GIRLS if girl else _BOYS)
        p = Person(n, girl)
        self.who = self.who or p
        return p

    def people(self, k):
        out = []
        while len(out) < k:
            p = self.person()
            if all(p.n != q.n for q in out):
                out.append(p)
        return out

    def n(self, x):
        """A number as people write it: small ones sometimes in words."""
        return WORDS[x] if 2 <= x <= 12 and self.rnd() < .15 else str(x)

    def times(self, k):
        return self.pick(TIMES[k])

    def money(self, x):
        return f"${x}" if self.rnd() < .8 else f"{x} dollars"

    # Telling
    def say(self, *wordings):
        self.ctx.append(self.pick(wordings))

    def ask(self, *wordings):
        self.question = self.pick(wordings)

    def need(self, condition):
        if not condition:
            self.ok = False

    def quiet(self):
        """No distracting sentence: it could be taken for part of this problem."""
        self.noise_ok = False

    # Computing
    def _step(self, label, text, value):
        self.steps.append(f"{label}: {text} = {value}" if label else f"{text} = {value}")
        if value < 0 or value > 9999:
            self.ok = False
        self.value = value
        return value

    def add(self, label, a, b, *more):
        v = self._step(label, f"{a} + {b}", a + b)
        for c in more:
            v = self._step(label, f"{v} + {c}", v + c)
        return v

    def sub(self, label, a, b):
        return self._step(label, f"{a} - {b}", a - b)

    def mul(self, label, a, b):
        """Products one can do at a glance stay whole; others are broken at the tens of one factor."""
        lo, hi = (a, b) if a <= b else (b, a)
        text = f"{a} * {b}"
        if lo >= 100 or hi >= 1000 and lo > 12:
            self.ok = False
            return 0
        if lo > 10 and lo % 10 and hi % 10 and hi > 10:
            # Two factors of two digits or more: split the second one.
            s, t = (b, a) if b < 100 else (a, b)
            tens, ones = s // 10 * 10, s % 10
            text += f" = {t} * {tens} + {t} * {ones} = {t * tens} + {t * ones}"
            if t >= 100:
                self.ok = False
        elif hi > 100 and lo > 1 and hi % 100 and lo % 10:
            head = hi // 100 * 100
            text += f" = {head} * {lo} + {hi - head} * {lo} = {head * lo} + {(hi - head) * lo}"
        return self._step(label, text, a * b)

    def div(self, label, a, b):
        if b < 1 or a % b:
            self.ok = False
            return 0
        return self._step(label, f"{a} / {b}", a // b)

    def divrem(self, label, a, b):
        q, r = divmod(a, b)
        self.steps.append(f"{label}: {a} / {b} = {q} remainder {r}")
        self.value = r
        return q, r

    # Finishing
    def _noise(self):
        w, k = self.who, self.i(3, 60)
        kind = int(self.rnd() * 12)
        if w is None or kind < 3:
            return self.pick((f"It is {k % 20 + 10} degrees outside.", f"The shop opens at {k % 4 + 7} in the morning.",
                              f"The radio plays {k} songs that day.", f"There are {k} houses on the street.",
                              f"The town has {k % 8 + 2} schools.", f"It rained for {k % 6 + 2} hours the day before.",
                              f"Bus number {k} passes by."))
        if kind < 6:
            return self.pick((f"{w.n} is {k % 12 + 18} years old.", f"{w.n} lives at number {k}.", f"{w.n} got up at {k % 4 + 6} that day.",
                              f"{w.n} has {k % 4 + 2} cousins.", f"{w.n} is {k + 120} cm tall."))
        if kind < 9 and self.spare:
            _, x = self.pick(self.spare)
            if any(x in s for s in self.ctx) or x in self.question:
                return ""
            return self.pick((f"{w.n} also has {k} {x} at home.", f"There are also {k} {x} in the room.",
                              f"{w.n} looks at {k} {x} too, but leaves them alone.", f"Last year {w.n} had {k} {x}."))
        return self.pick((f"{w.n} walks for {k} minutes to get there.", f"{w.n}'s favorite number is {k}.",
                          f"The day before, {w.n} read {k} pages of a comic.", f"{w.n} has {k % 9 + 2} friends with a dog.",
                          f"{w.n} waits {k} minutes for the bus."))

    def finish(self, max_value):
        if not self.ok or self.value is None or self.value < 1 or self.value > max_value:
            return None
        parts = self.ctx
        if self.question:
            if self.noise_ok and self.rnd() < .22:
                text = self._noise()
                if text:
                    parts.insert(self.i(1, len(parts)), text)
            parts = parts + [self.question]
        return " ".join(parts), "\n".join(self.steps) + f"\n#### {self.value}"


TEMPLATES = []


def template(fn):
    TEMPLATES.append(fn)
    return fn
