"""Random templates for the comparison with jinja2: mostly well-typed, sometimes not, so that errors are compared too.

    chat_template_random.py TEMPLATE_DUMP [COUNT [SEED]]            runs COUNT cases and prints disagreements
    chat_template_random.py TEMPLATE_DUMP COUNT SEED FILE...        the same with mutants of these templates"""
import random
import re
import signal
import sys

from chat_template_reference import Dump, agree, reference, show

STRINGS = ["", "a", "hello world", "Hello  World ", " padded\t\n", "a,b,,c", "line1\nline2\r\nline3", "héllo ß ǆ İ", "日本語",
           "😀 emoji 👍🏽", "<b>&'\"</b>", "{{ x }}", "%s and %d", "{} {0}", "it's", 'say "hi"', "back\\slash", "ΣΑΣ Σ", "123",
           "-4.5", " 42 ", "1_000", "0x1f", "nan", "tab\there", "\u00a0nbsp\u2003", "x" * 40, "<|im_end|>", "</think>",
           "A<think>b</think>c", "UPPER", "Title Case", "snake_case", "é", "e\u0301", "\x00", "\x7f\x1f"]
INTS = [0, 1, 2, 3, 5, 7, -1, -2, -3, 10, 12, 255, 1000]
FLOATS = [0.0, 1.0, 2.5, -0.5, 3.14159, 1e16, 1e-5, 1e22, 0.1, 123456.789, -2.5, 0.5, 1.5, 100.0]
NAMES = ["s", "t", "u", "i", "j", "f", "b", "n", "l", "m", "d", "e", "msgs", "tools", "nope", "w", "ll"]
VARIABLES = {
    "s": "Hello, wörld", "t": "a b  c", "u": "  <think>x</think>y\n", "i": 3, "j": -7, "f": 2.5, "b": True, "n": None,
    "l": [3, 1, 2], "m": ["b", "A", "c", "a"], "d": {"a": 1, "b": [1, 2], "c": {"x": "y"}}, "e": {}, "w": "",
    "ll": [[1, "x"], [2, "y"], [3, "z"]],
    "msgs": [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hi <x>"},
             {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"q": "é"}}}]},
             {"role": "tool", "content": "42", "tool_call_id": "1"}, {"role": "user", "content": ""}],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d\nd", "parameters": {"type": "object",
               "properties": {"q": {"type": "string"}, "n": {"type": ["integer", "null"]}}, "required": ["q"]}}}],
}


class Gen:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.locals = []
        self.macros = []
        self.loops = 0
        self.recursive = 0

    def pick(self, *options):
        return self.r.choice(options)

    def chance(self, p):
        return self.r.random() < p

    # -- literals
    def string_literal(self):
        text = self.r.choice(STRINGS)
        quote = self.pick("'", '"')
        out = []
        for c in text:
            if c == "\\" or c == quote:
                out.append("\\" + c)
            elif c == "\n":
                out.append("\\n" if self.chance(0.9) else "\n")
            elif ord(c) < 32 or c == "\x7f":
                out.append("\\x%02x" % ord(c))
            elif ord(c) > 127 and self.chance(0.3):
                out.append("\\u%04x" % ord(c) if ord(c) < 0x10000 else "\\U%08x" % ord(c))
            else:
                out.append(c)
        return quote + "".join(out) + quote

    def name(self):
        if self.locals and self.chance(0.4):
            return self.r.choice(self.locals)
        return self.r.choice(NAMES)

    def atom(self, depth):
        k = self.r.random()
        if k < 0.42:
            return self.name()
        if k < 0.60:
            return self.string_literal()
        if k < 0.72:
            return str(self.r.choice(INTS))
        if k < 0.77:
            return repr(self.r.choice(FLOATS))
        if k < 0.83:
            return self.pick("true", "false", "none", "True", "None")
        if depth <= 0:
            return self.name()
        if k < 0.88:
            return "[" + ", ".join(self.expr(depth - 1) for _ in range(self.r.randrange(4))) + "]"
        if k < 0.91:
            items = [self.expr(depth - 1) for _ in range(self.r.randrange(4))]
            return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"
        if k < 0.95:
            return "{" + ", ".join(f"{self.key()}: {self.expr(depth - 1)}" for _ in range(self.r.randrange(3))) + "}"
        if k < 0.97:
            return f"range({', '.join(self.int(depth - 1) for _ in range(self.r.randrange(1, 4)))})"
        if self.loops and k < 0.99:
            return "loop." + self.pick("index", "index0", "first", "last", "length", "revindex", "revindex0", "previtem",
                                       "nextitem", "depth", "nope", "cycle('a', 'b')", "changed(i)")
        if self.macros:
            return self.macro_call(depth - 1)
        return f"namespace({self.key_name()}={self.expr(depth - 1)})"

    def key(self):
        return self.pick("'a'", "'b'", "'role'", "1", "'x'", "none", "true", "1.0", "('a', 1)", "s")

    def key_name(self):
        return self.pick("a", "b", "c", "role", "content", "x", "name", "items", "keys")

    def int(self, depth):
        return self.pick("0", "1", "2", "3", "-1", "i", "j", "5", "l|length", "10") if self.chance(0.9) else self.expr(depth)

    def small(self):
        return self.pick("0", "1", "2", "3", "-1", "-2", "4")

    def str(self, depth):
        k = self.r.random()
        if k < 0.4:
            return self.string_literal()
        if k < 0.8:
            return self.pick("s", "t", "u", "w", "msgs[0].content", "msgs[1]['role']")
        return self.expr(depth)

    def seq(self, depth):
        return self.pick("l", "m", "ll", "msgs", "tools", "d", "s", "d.items()", "d.keys()", "range(4)", "m|map('upper')",
                         "l|select('odd')") if self.chance(0.85) else self.expr(depth)

    def macro_call(self, depth):
        name, params = self.r.choice(self.macros)
        args = [self.expr(depth) for _ in range(self.r.randrange(params + 1))]
        if self.chance(0.2):
            args.append(f"{self.pick('p0', 'p1', 'zz')}={self.expr(depth)}")
        return f"{name}({', '.join(args)})"

    # -- methods, filters, tests
    def method(self, depth):
        s = lambda: self.str(depth)
        n = self.small
        k = self.r.randrange(36)
        base = self.pick("s", "t", "u", self.string_literal(), self.str(depth))
        if not re.fullmatch(r"\w+|'[^']*'|\"[^\"]*\"", base):
            base = f"({base})"
        calls = ["strip()", f"strip({s()})", f"lstrip({s()})", "rstrip()", "split()", f"split({s()})", f"split({s()}, {n()})",
                 f"split(none, {n()})", f"rsplit({s()}, {n()})", f"rsplit(maxsplit={n()})", "splitlines()", "splitlines(true)",
                 f"startswith({s()})", f"endswith({s()})", f"startswith(('a', {s()}))", "upper()", "lower()", "title()",
                 "capitalize()", "swapcase()", f"replace({s()}, {s()})", f"replace({s()}, {s()}, {n()})", f"find({s()})",
                 f"find({s()}, {n()})", f"rfind({s()}, {n()}, {n()})", f"count({s()})", f"join({self.seq(depth)})",
                 f"removeprefix({s()})", f"removesuffix({s()})", f"partition({s()})", f"zfill({n()})", f"center({self.int(0)}, '*')",
                 "is" + self.pick("digit", "alpha", "alnum", "space", "upper", "lower", "title", "numeric", "ascii",
                                  "decimal", "printable", "identifier") + "()",
                 f"format({self.expr(depth)}, a={self.expr(depth)})", f"index({s()})", "expandtabs()"]
        return f"{base}.{calls[k]}"

    def other_method(self, depth):
        return self.pick(f"d.get({self.key()})", f"d.get({self.key()}, {self.expr(depth)})", "d.items()|list", "d.keys()|list",
                         "d.values()|list", f"l.index({self.int(depth)})", f"m.count({self.str(depth)})", "l.append(1)",
                         "d.update(e)", "l.copy()", "msgs[2].get('content')", "msgs[2].tool_calls[0].function.arguments",
                         "f.is_integer()", "d.pop", "e.items()", f"dict(d, z={self.expr(depth)})", "dict(ll)", "d.c.x", "d['b'][-1]")

    def filter(self, depth):
        e = lambda: self.expr(depth)
        s = lambda: self.str(depth)
        n = self.small
        general = ["upper", "lower", "title", "capitalize", "trim", f"trim({s()})", "length", "count", "string", "list", "first",
                   "last", "int", f"int({n()})", f"int({n()}, 16)", "float", "abs", "round", f"round({n()})", "round(1, 'ceil')", "round(1,'floor')",
                   f"default({e()})", f"d({e()}, true)", f"join({s()})", f"join({s()}, attribute={s()})", "tojson", "tojson(indent=2)",
                   "tojson(sort_keys=true)", "tojson(ensure_ascii=true)", f"tojson(separators=(',', {s()}))", f"replace({s()}, {s()})",
                   f"replace({s()}, {s()}, {n()})", "sort", "sort(reverse=true)", "sort(attribute='role')", "sort(case_sensitive=true)",
                   "sort(attribute=1)", "unique", "unique|list", "reverse", "reverse|list", "items", "items|list", "dictsort", "dictsort(by='value')",
                   "dictsort(true, reverse=true)", "sum", "sum(start=10)", "sum(attribute='a')", "min", "max", "max(attribute='role')",
                   f"batch({n()})|list", f"batch({n()}, 'x')|list", f"slice({n()})|list", f"slice({n()}, 'x')|list", "indent", f"indent({n()}, true)",
                   f"indent({s()})", "indent(2, blank=true)", "safe", "escape", "e", "forceescape", f"format({e()})", "wordcount", f"center({self.int(0)})",
                   f"truncate({n()})", "truncate(9, true, '.', 0)", "truncate(11)", f"map('{self.pick('upper', 'string', 'length', 'tojson', 'first', 'int')}')|list",
                   f"map('default', {e()})|list", f"map(attribute={s()})|list", "map(attribute='role')|join(', ')", "map(attribute='content', default='?')|list",
                   "map(attribute='c.x')|list", f"select|list", f"select('{self.pick('odd', 'string', 'defined', 'none', 'mapping')}')|list",
                   f"select('{self.pick('gt', 'eq', '==', 'in', 'ne', '<')}', {e()})|list", f"reject('{self.pick('even', 'string', 'none')}')|list",
                   "selectattr('content')|list", f"selectattr('role', 'equalto', {s()})|list", "selectattr('role', 'in', ['user', 'tool'])|list|length",
                   f"rejectattr('content', 'none')|list", "selectattr('tool_calls', 'defined')|list|length", "groupby('role')", "groupby(0)|list",
                   "groupby('nope', default='x')", "attr('upper')", "urlencode", "filesizeformat", "items|map('first')|list", "nosuchfilter"]
        return self.r.choice(general)

    def test(self, depth):
        return self.pick("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence",
                         "iterable", "true", "false", "odd", "even", "callable", "escaped", "lower", "upper", f"divisibleby {self.small()}",
                         f"divisibleby({self.small()})", f"eq({self.expr(depth)})", f"equalto {self.string_literal()}",
                         f"in {self.pick('l', 'm', 's', 'd')}", f"in({self.expr(depth)})", f"ne {self.small()}", f"gt {self.small()}",
                         f"lessthan({self.expr(depth)})", f"sameas {self.pick('none', 'true', 's')}", "filter", "test", "nosuchtest")

    # -- expressions
    def expr(self, depth):
        if self.chance(0.07):
            return self.any(depth)
        return self.pick(self.text_expr, self.text_expr, self.number_expr, self.list_expr, self.truth_expr, self.any)(depth)

    def text_expr(self, depth):
        if depth <= 0:
            return self.pick("s", "t", "u", "w", "msgs[0].content", self.string_literal())
        k = self.r.random()
        text = lambda: self.paren(self.text_expr(depth - 1))
        if k < 0.35:
            return self.method(depth - 1)
        if k < 0.45:
            return f"{text()} + {text()}"
        if k < 0.55:
            return f"{text()} ~ {self.paren(self.expr(depth - 1))}"
        if k < 0.60:
            return f"{text()} * {self.small()}"
        if k < 0.68:
            return f"{text()}[{self.bounds()}]"
        if k < 0.75:
            return f"{text()}[{self.small()}]"
        if k < 0.90:
            return f"{text()}|" + self.pick("upper", "lower", "title", "capitalize", "trim", f"trim({self.str(0)})", "string", "length", "list",
                                            "first", "last", "int", "float", f"replace({text()}, {text()})", "reverse", "indent", "indent(2, true)", "e",
                                            "wordcount", "center(20)", "truncate(9)", "tojson", "urlencode", "safe", "default('x', true)", "join('-')")
        if k < 0.94:
            return f"{self.seq(depth - 1)}|join({text()})"
        if k < 0.96:
            return f"{self.pick(*[repr(x) for x in ('%s', '%r|%5s', '%-6s|', '%.2s', '%%%s')])} % {text()}"
        return f"{text()} if {self.truth_expr(depth - 1)} else {text()}"

    def number_expr(self, depth):
        if depth <= 0:
            return self.pick("i", "j", "f", "b", "s|length", str(self.r.choice(INTS)), repr(self.r.choice(FLOATS)))
        k = self.r.random()
        number = lambda: self.paren(self.number_expr(depth - 1))
        if k < 0.5:
            return f"{number()} {self.pick('+', '-', '*', '/', '//', '%')} {number()}"
        if k < 0.55:
            return f"{self.pick('i', 'f', '2', '-1', '0', 'j')} ** {self.pick('0', '1', '2', '3', '-1', '0.5')}"
        if k < 0.65:
            return f"{self.pick('-', '+')}{number()}"
        if k < 0.85:
            return f"{number()}|" + self.pick("abs", "int", "float", "round", f"round({self.small()})", "round(1, 'ceil')", "round(2,'floor')", "string",
                                              "tojson", "filesizeformat", "default(1)")
        if k < 0.93:
            return f"'{self.pick('%d', '%5.1f', '%e', '%g', '%x', '%05d', '%+d', '%s', '%i|', '%.3g', '%o', '%-6d|', '%#x')}' % {number()}"
        return f"'{{{self.pick('', ':d', ':5', ':<5', ':.2f', ':,', ':+', ':e', ':x', ':08.3f', ':%', ':g', '!r', ':^9', ':.3', ':b')}}}'.format({number()})"

    def list_expr(self, depth):
        if depth <= 0:
            return self.pick("l", "m", "ll", "msgs", "tools", "d", "e", "range(3)", "[]")
        k = self.r.random()
        if k < 0.2:
            return "[" + ", ".join(self.expr(depth - 1) for _ in range(self.r.randrange(4))) + "]"
        if k < 0.3:
            return f"{self.paren(self.pick('l', 'm', 'll', '[]', self.list_expr(depth - 1)))} + {self.pick('l', 'm', '[i]', '[]')}"
        if k < 0.45:
            return f"{self.paren(self.list_expr(depth - 1))}[{self.bounds()}]"
        if k < 0.55:
            return f"{self.paren(self.list_expr(depth - 1))}[{self.pick(self.small(), self.key())}]"
        if k < 0.6:
            return self.other_method(depth - 1)
        return f"{self.paren(self.list_expr(depth - 1))}|{self.filter(depth - 1)}"

    def truth_expr(self, depth):
        if depth <= 0:
            return self.pick("true", "false", "b", "n", "s", "w", "l", "e", "nope", "i")
        k = self.r.random()
        if k < 0.4:
            return f"{self.paren(self.expr(depth - 1))} is {self.pick('', '', 'not ')}{self.test(depth - 1)}"
        if k < 0.55:
            kind = self.pick(self.text_expr, self.number_expr)
            return f"{self.paren(kind(depth - 1))} {self.pick('==', '!=', '<', '<=', '>', '>=')} {self.paren(kind(depth - 1))}"
        if k < 0.6:
            return f"{self.small()} < {self.number_expr(0)} <= {self.number_expr(0)}"
        if k < 0.75:
            return f"{self.paren(self.expr(depth - 1))} {self.pick('in', 'not in')} {self.paren(self.list_expr(depth - 1))}"
        if k < 0.9:
            return f"{self.paren(self.expr(depth - 1))} {self.pick('and', 'or')} {self.paren(self.expr(depth - 1))}"
        return f"not {self.paren(self.expr(depth - 1))}"

    def bounds(self):
        return ":".join(self.pick("", "", self.small(), self.small(), "i") for _ in range(self.r.randrange(2, 4)))

    def any(self, depth):
        if depth <= 0:
            return self.atom(0)
        k = self.r.random()
        if k < 0.30:
            return self.atom(depth)
        if k < 0.45:
            return self.other_method(depth - 1)
        if k < 0.55:
            return f"{self.paren(self.expr(depth - 1))}|{self.filter(depth - 1)}"
        if k < 0.62:
            op = self.pick("+", "+", "-", "*", "/", "//", "%", "~", "~", "==", "!=", "<", "<=", ">", ">=", "and", "or", "in", "not in")
            left = self.expr(depth - 1)
            right = self.small() if op == "*" else self.expr(depth - 1)
            return f"{self.paren(left)} {op} {self.paren(right)}"
        if k < 0.7:
            cond = f"{self.paren(self.expr(depth - 1))} if {self.paren(self.expr(depth - 1))}"
            return cond + (f" else {self.paren(self.expr(depth - 1))}" if self.chance(0.8) else "")
        if k < 0.78:
            return f"{self.paren(self.expr(depth - 1))}[{self.pick(self.int(depth - 1), self.key())}]"
        if k < 0.82:
            return f"{self.paren(self.expr(depth - 1))}.{self.key_name()}"
        if k < 0.86:
            return f"{self.string_literal()} % {self.paren(self.expr(depth - 1))}"
        return self.atom(depth)

    def paren(self, text):
        return text if re.fullmatch(r"\w+", text) else f"({text})"

    # -- statements
    def sign(self):
        return self.pick("", "", "", "-", "+")

    def tag(self, text):
        return "{%" + self.sign() + " " + text + " " + self.sign() + "%}"

    def text(self):
        return self.pick("", " ", "\n", "\n\n", "  \n", "text", " a\n  ", "\n    ", "<|im_start|>", "é\n", "\t", "{", "}", "% }", "# ")

    def body(self, depth, size=3):
        return "".join(self.text() + self.statement(depth) for _ in range(self.r.randrange(1, size + 1))) + self.text()

    def scoped(self, make):
        saved = list(self.locals)
        result = make()
        self.locals = saved
        return result

    def local(self):
        return self.pick("v0", "v1", "v2", "s", "i", "l")

    def statement(self, depth):
        k = self.r.random()
        if depth <= 0 or k < 0.38:
            return "{{" + self.pick("", "", "-", "+") + " " + self.expr(2) + " " + self.pick("", "", "-") + "}}"
        if k < 0.50:
            return self.set(depth)
        if k < 0.66:
            return self.loop(depth)
        if k < 0.80:
            out = self.tag("if " + self.expr(2)) + self.body(depth - 1)
            for _ in range(self.r.randrange(2)):
                out += self.tag("elif " + self.expr(2)) + self.body(depth - 1)
            if self.chance(0.5):
                out += self.tag("else") + self.body(depth - 1)
            return out + self.tag("endif")
        if k < 0.86:
            return self.macro(depth)
        if k < 0.88:
            return self.tag(f"filter {self.pick('upper', 'trim', 'title|lower', 'indent(2)', 'length', 'replace(s, t)')}") + self.scoped(
                lambda: self.body(depth - 1)) + self.tag("endfilter")
        if k < 0.90:
            return self.tag("generation") + self.scoped(lambda: self.body(depth - 1)) + self.tag("endgeneration")
        if k < 0.92:
            def make():
                name = self.local()
                value = self.expr(2)
                self.locals.append(name)
                return self.tag(f"with {name} = {value}, v2 = {name}") + self.body(depth - 1) + self.tag("endwith")
            return self.scoped(make)
        if k < 0.94:
            return "{#" + self.sign() + " note " + self.sign() + "#}"
        if k < 0.95:
            return "{%" + self.sign() + " raw " + self.pick("", "-") + "%} {{ raw }} {% x %}\n {%" + self.sign() + " endraw " + self.sign() + "%}"
        if k < 0.98 and self.loops:
            return self.tag(self.pick("break", "continue")) if self.chance(0.6) else (
                self.tag("if " + self.expr(1)) + self.tag(self.pick("break", "continue")) + self.tag("endif"))
        if self.macros:
            return self.tag("call " + self.macro_call(1)) + self.scoped(lambda: self.in_function(lambda: self.body(depth - 1))) + self.tag("endcall")
        return "{{ " + self.expr(1) + " }}"

    def in_function(self, make):
        loops, self.loops = self.loops, 0
        result = make()
        self.loops = loops
        return result

    def set(self, depth):
        k = self.r.random()
        if k < 0.6:
            name = self.local()
            out = self.tag(f"set {name} = {self.expr(2)}")
            self.locals.append(name)
            return out
        if k < 0.7:
            self.locals += ["v0", "v1"]
            return self.tag(f"set v0, v1 = {self.pick('1, 2', 'll[0]', self.expr(1) + ', ' + self.expr(1), self.expr(1))}")
        if k < 0.8:
            name = self.local()
            out = self.tag(f"set {name}{self.pick('', '', '|upper', '|trim|length')}") + self.scoped(lambda: self.body(depth - 1)) + self.tag("endset")
            self.locals.append(name)
            return out
        if "ns" not in self.locals and self.chance(0.8):
            self.locals.append("ns")
            return self.tag(f"set ns = namespace(a={self.expr(1)}, b=0)")
        return self.tag(f"set ns.{self.pick('a', 'b', 'c')} = {self.pick('ns.a', 'ns.b + 1', self.expr(2))}")

    def loop(self, depth):
        def make():
            names = self.pick("v0", "v0", "v1", "v0, v1", "m", "(v0, v1), v2" if self.chance(0.1) else "v2")
            source = self.pick("ll", "d.items()", "d|dictsort", "[(1, 2), (3, 4)]") if "," in names and self.chance(0.8) else self.seq(1)
            out = f"for {names} in {source}"
            saved = list(self.locals)
            self.locals += names.replace("(", "").replace(")", "").split(", ")
            if self.chance(0.2):
                out += f" if {self.expr(1).replace('loop.', 'i.')}"
            recursive = self.chance(0.04)
            self.loops += 1
            body = self.body(depth - 1)
            if recursive:
                body += "{{ loop([]) }}{{ loop.depth }}"
            self.loops -= 1
            out = self.tag(out + (" recursive" if recursive else "")) + body
            self.locals = saved
            if self.chance(0.2):
                out += self.tag("else") + self.body(depth - 1)
            return out + self.tag("endfor")
        return self.scoped(make)

    def macro(self, depth):
        name = f"mac{len(self.macros)}"
        params = self.r.randrange(3)
        signature = []
        for p in range(params):
            signature.append(f"p{p}" + (f"={self.expr(1)}" if p == params - 1 and self.chance(0.5) else ""))
        def make():
            self.locals += [f"p{p}" for p in range(params)]
            extra = self.pick("", "", "{{ caller() if caller else '-' }}", "{{ varargs }}", "{{ kwargs }}", "{{ caller is defined }}")
            return self.in_function(lambda: self.body(depth - 1)) + extra
        body = self.scoped(make)
        self.macros.append((name, params))
        return self.tag(f"macro {name}({', '.join(signature)})") + body + self.tag("endmacro")

    def template(self):
        if self.chance(0.35):
            return "{{ " + self.expr(3) + " }}"
        if self.chance(0.1):
            return self.body(3, 4)
        # Statement by statement, leaving out most of those that fail: an error ends a render and hides what follows.
        source = ""
        for _ in range(self.r.randrange(2, 7)):
            state = list(self.locals), list(self.macros)
            longer = source + self.text() + self.statement(3)
            if reference(longer, VARIABLES)[0] == "text" or self.chance(0.03):
                source = longer
            else:
                self.locals, self.macros = state
        return source


ADDRESS = re.compile(r"<(built-in|bound) method|<function|<generator|object\b.* at 0x|\bmissing\b", re.I | re.S)


class TooSlow(BaseException):
    pass


def too_slow(*_):
    raise TooSlow


def mutate(r, source):
    """A template with a few characters or pieces lost, doubled or moved: lexer and parser must refuse what jinja2 does."""
    pieces = re.findall(r"\{[{%#][-+]?|[-+]?[}%#]\}|\w+|\s+|.", source, re.S)
    if len(pieces) > 150 and r.random() < 0.7:  # a part of it, so that one mistake does not hide another
        start = r.randrange(len(pieces) - 100)
        pieces = pieces[start:start + r.randrange(20, 100)]
    for _ in range(r.randrange(1, 4)):
        k, at = r.random(), r.randrange(len(pieces))
        if k < 0.35:
            del pieces[at]
        elif k < 0.5:
            pieces.insert(at, pieces[r.randrange(len(pieces))])
        elif k < 0.65:
            other = r.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif k < 0.9:
            pieces.insert(at, r.choice(["{{", "}}", "{%", "%}", "{#", "#}", "-", "+", "|", "(", ")", "[", "]", "{", "}", ",", ":", ".", "'", '"', "\\",
                                        " ", "\n", "is", "not", "in", "if", "else", "and", "or", "for", "set", "1", "1.5", "0x", "~", "==", "**", "//",
                                        "none", "loop", "recursive", "raw", "endraw", "*", "=", "é", "\t", "endif", "endfor", "e5", "_1", "%"]))
        else:
            piece = pieces[at]
            cut = r.randrange(len(piece) + 1)
            pieces[at] = piece[:cut]
        if not pieces:
            pieces = [" "]
    return "".join(pieces)


def compare_mutant(dump, seed, sources):
    r = random.Random(seed)
    return compare_source(dump, mutate(r, r.choice(sources)))


def compare(dump, seed):
    """(source, expected, got, why) where why is None, a disagreement, or "skipped"."""
    signal.setitimer(signal.ITIMER_REAL, 4)
    try:
        source = Gen(seed).template()
    except TooSlow:
        return "", ("error", "slow", False), None, "skipped"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return compare_source(dump, source)


def compare_source(dump, source):
    signal.setitimer(signal.ITIMER_REAL, 4)
    try:
        expected = reference(source, VARIABLES)
    except TooSlow:
        return source, ("error", "slow", False), None, "skipped"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    got = dump.render(source, VARIABLES)
    why = agree(expected, got)
    if why:
        # What has no meaning in a prompt (addresses), and the limits that are ours.
        if expected[0] == "text" and ADDRESS.search(expected[1]) or "RecursionError" in expected[1]:
            why = "skipped"
        elif got[0] == "error" and (got[2] in ("unsupported", "limit reached") or "64 bits" in got[1]):
            why = "skipped"
        elif "cannot be sliced" in got[1]:  # jinja2 folds constants with other rules than it computes them
            why = "skipped"
    return source, expected, got, why


def run(dump, count, seed, sources=None):
    """Yields disagreements; returns through .value the numbers of (agreed texts, agreed errors, skipped).  With sources:
    mutants of these."""
    signal.signal(signal.SIGALRM, too_slow)
    texts = errors = skipped = 0
    for n in range(seed, seed + count):
        source, expected, got, why = compare_mutant(dump, n, sources) if sources else compare(dump, n)
        if why == "skipped":
            skipped += 1
        elif why:
            yield n, source, expected, got, why
        elif expected[0] == "text":
            texts += 1
        else:
            errors += 1
    return texts, errors, skipped


def collect(dump, count, seed, sources=None):
    bad = []
    runner = run(dump, count, seed, sources)
    while True:
        try:
            bad.append(next(runner))
        except StopIteration as end:
            return bad, end.value


def main():
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 10000
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    sources = [open(path, encoding="utf-8", newline="").read() for path in sys.argv[4:]]
    dump = Dump(sys.argv[1])
    bad, (texts, errors, skipped) = collect(dump, count, seed, sources)
    for n, source, expected, got, why in bad[:30]:
        print(f"# seed {n}: {why}")
        show(source, {}, expected, got)
    print(f"{count} cases from seed {seed}: {texts} equal texts, {errors} errors on both sides, {skipped} skipped, "
          f"{len(bad)} disagreements")
    dump.close()
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
