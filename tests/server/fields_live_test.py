"""Every field of a request, end to end: each claim sends one to the real server and looks for what it does to the answer.

    fields_live_test.py PATH/TO/moefuse [SUBSTRING...]     the substrings choose groups of claims"""
import json
import pathlib
import re
import sys

import jsonschema
import openai

from serving import Server, claim, events_of, plan

PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
PROMPT = "Tom has 3 boxes with 12 pens each. He gives 5 pens to Anna. How many pens are left?"
CHAT = [{"role": "user", "content": PROMPT}]
NAME = "word-problems"
EOS_TEXT = "<\uff5cend\u2581of\u2581sentence\uff5c>"


class Ask:
    """Greedy unless told otherwise."""

    def __init__(self, server):
        self.server = server

    def completion(self, status=200, **fields):
        return self.send("/v1/completions", {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **fields}, status)

    def chat(self, status=200, **fields):
        return self.send("/v1/chat/completions", {"messages": CHAT, "max_tokens": 80, "temperature": 0, **fields}, status)

    def send(self, path, body, status):
        body = {k: v for k, v in body.items() if v != "absent"}
        answer = self.server.post(path, body)
        if answer.status != status:
            claim(f"{path} {sorted(body)} is {status}", False, f"{answer.status} {answer.body[:600]}")
            return {"choices": [{"text": "", "message": {"content": ""}, "token_ids": []}], "usage": {}, "error": {}}
        return answer.json


def text_of(answer, index=0):
    choice = answer["choices"][index]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def ids_of(answer, index=0):
    return answer["choices"][index].get("token_ids")


# ---- what goes in ----------------------------------------------------------------------------------------------------


def prompts(ask):
    base = ask.completion()
    ids = ask.send("/tokenize", {"prompt": PROMPT}, 200)["tokens"]
    kinds = {"[string]": [PROMPT], "[id]": ids, "[[id]]": [ids]}
    same = {k: text_of(ask.completion(prompt=v)) == text_of(base) for k, v in kinds.items()}
    claim("prompt: text, a list of one, ids and a list of ids are the same prompt", all(same.values()), same)
    two = ask.completion(prompt=["Tom", PROMPT], n=2)
    claim("prompt x n: index counts prompts first", [c["index"] for c in two["choices"]] == [0, 1, 2, 3] and
          text_of(two, 2) == text_of(two, 3) == text_of(base), two)
    off = ask.completion(add_special_tokens=False)
    claim("add_special_tokens: false leaves out what the tokenizer puts before", off["usage"]["prompt_tokens"] <
          base["usage"]["prompt_tokens"] == len(ids), f"{off['usage']} {len(ids)}")
    cut = ask.completion(truncate_prompt_tokens=5, echo=True, max_tokens=1)
    claim("truncate_prompt_tokens: the end of the prompt is kept", cut["usage"]["prompt_tokens"] == 5 and
          text_of(cut)[:12] in PROMPT[-24:], cut)
    fit = ask.completion(prompt="pens " * 3000, truncate_prompt_tokens=-1)
    claim("truncate_prompt_tokens: -1 keeps what fits", fit["usage"]["prompt_tokens"] == 1024 - 24, fit["usage"])
    nul = ask.completion(prompt="a\0b", echo=True, max_tokens=1)
    claim("prompt: NUL is text like any other", text_of(nul).startswith("a\0b"), nul)
    e = ask.completion(400, stop="a\0")["error"]
    claim("stop: NUL is refused by name", e.get("param") == "stop" and "NUL" in e.get("message", ""), e)
    a = ask.send("/tokenize", {"prompt": "x\0y", "add_special_tokens": False}, 200)
    claim("/tokenize and /detokenize keep NUL", ask.send("/detokenize", {"tokens": a["tokens"]}, 200)["prompt"] == "x\0y", a)


def conversations(ask):
    base = ask.chat()
    parts = ask.chat(messages=[{"role": "user", "content": [{"type": "text", "text": PROMPT}]}])
    claim("messages: a text part is the text", text_of(parts) == text_of(base), parts)
    claim("messages: NUL in content is text", ask.chat(messages=[{"role": "user", "content": "a\0b"}])["usage"]["prompt_tokens"] >
          ask.chat(messages=[{"role": "user", "content": "ab"}])["usage"]["prompt_tokens"])
    more = ask.chat(messages=[{"role": "system", "content": "Be brief."}, *CHAT])
    claim("messages: a system message goes in", more["usage"]["prompt_tokens"] > base["usage"]["prompt_tokens"], more["usage"])
    bare = ask.chat(add_generation_prompt=False, max_tokens=1)
    claim("add_generation_prompt: false leaves the turn unopened", bare["usage"]["prompt_tokens"] < base["usage"]["prompt_tokens"], bare)
    begun = text_of(base)[:12]
    go_on = ask.chat(messages=[*CHAT, {"role": "assistant", "content": begun}], add_generation_prompt=False, continue_final_message=True)
    claim("continue_final_message: the answer goes on", begun + text_of(go_on) == text_of(base), go_on)
    claim("continue_final_message and add_generation_prompt exclude each other",
          ask.chat(400, continue_final_message=True)["error"].get("param") == "continue_final_message")
    echo = ask.chat(messages=[*CHAT, {"role": "assistant", "content": begun}], add_generation_prompt=False, continue_final_message=True,
                    echo=True)
    claim("echo in a chat: the last message comes first", text_of(echo) == text_of(base), echo)
    twice = ask.chat(add_special_tokens=True)
    claim("add_special_tokens in a chat: on top of the template's", twice["usage"]["prompt_tokens"] > base["usage"]["prompt_tokens"], twice)
    claim("chat_template: refused without the server's trust", ask.chat(400, chat_template="x")["error"].get("param") == "chat_template")
    claim("chat_template_kwargs: variables are taken, the server's own refused", text_of(ask.chat(chat_template_kwargs={"x": 1})) ==
          text_of(base) and ask.chat(400, chat_template_kwargs={"messages": []})["error"].get("param") == "chat_template_kwargs")


def templates(_):
    with Server(PROGRAM, "--trust-request-chat-template") as server:
        ask = Ask(server)
        a = ask.chat(chat_template="{{ x }}{{ reasoning_effort }}", chat_template_kwargs={"x": "ab"}, reasoning_effort="low", max_tokens=1)
        b = ask.completion(prompt="ablow", add_special_tokens=False, max_tokens=1)
        claim("chat_template, chat_template_kwargs, reasoning_effort: the request's template with the request's variables",
              a["usage"]["prompt_tokens"] == b["usage"]["prompt_tokens"], f"{a['usage']} {b['usage']}")
        claim("it ends with 0", server.stop() == 0, server.log)


# ---- lengths, choices ------------------------------------------------------------------------------------------------


def lengths(ask):
    base = ask.chat(return_token_ids=True)
    made = base["usage"]["completion_tokens"]
    claim("a chat ends by itself, EOS counted", base["choices"][0]["finish_reason"] == "stop" and base["choices"][0]["stop_reason"] is None
          and len(ids_of(base)) == made, base)
    short = ask.chat(max_completion_tokens=5, max_tokens=50)
    claim("max_completion_tokens: goes before max_tokens", short["usage"]["completion_tokens"] == 5 and
          short["choices"][0]["finish_reason"] == "length", short)
    rest = ask.chat(max_tokens="absent", ignore_eos=True)
    claim("max_tokens: a chat without one takes the rest of the context", rest["usage"]["total_tokens"] == 1024, rest["usage"])
    claim("max_tokens: a completion without one makes 16", ask.completion(max_tokens="absent")["usage"]["completion_tokens"] == 16)
    longer = ask.chat(min_tokens=made + 4)
    claim("min_tokens: no end before", longer["usage"]["completion_tokens"] >= made + 4, longer)
    on = ask.chat(ignore_eos=True, max_tokens=made + 6)
    claim("ignore_eos: goes on behind it", on["usage"]["completion_tokens"] == made + 6 and text_of(on).startswith(text_of(base)), on)
    shown = ask.chat(ignore_eos=True, max_tokens=made + 6, skip_special_tokens=False)
    claim("skip_special_tokens: false shows them", EOS_TEXT in text_of(shown) and EOS_TEXT not in text_of(on), shown)
    e = ask.completion(400, max_tokens=1024)["error"]
    claim("too long is 400 with the numbers", re.fullmatch(r"This model's maximum context length is 1024 tokens\. However, you requested "
          r"\d+ tokens \(\d+ in the prompt, 1024 in the completion\)\.", e.get("message", "")), e)
    third = ids_of(base)[2]
    s = ask.chat(stop_token_ids=[third], return_token_ids=True)
    claim("stop_token_ids: ends there and says which", s["choices"][0]["stop_reason"] == third and s["choices"][0]["finish_reason"] == "stop"
          and len(ids_of(s)) <= 3, s)
    word = text_of(base).split()[2]
    t = ask.chat(stop=[word, "never"], include_stop_str_in_output=True)
    claim("include_stop_str_in_output: the stop text is the end", text_of(t) == text_of(base)[:text_of(base).index(word) + len(word)], t)
    claim("stop: an empty one is 400", ask.chat(400, stop=[""])["error"].get("param") == "stop")
    d = ask.completion(timeout=0.05, max_tokens=900)
    claim("timeout: ends with what there is", d["choices"][0].get("stop_reason") == "deadline", d)


# ---- sampling --------------------------------------------------------------------------------------------------------


def sampling(ask):
    base = ask.completion(return_token_ids=True, max_tokens=60)
    hot = dict(temperature=2, seed=11, max_tokens=60, return_token_ids=True)
    for name, fields in (("top_k 1", {"top_k": 1}), ("top_p near 0", {"top_p": 1e-6}), ("min_p 1", {"min_p": 1})):
        claim(f"{name}: only the best token is left", ids_of(ask.completion(**{**hot, **fields})) == ids_of(base))
    a, b, c = (ids_of(ask.completion(**{**hot, "seed": s})) for s in (11, 11, 12))
    claim("seed: equal seeds, equal answers; others differ", a == b != c)
    claim("temperature: 2 is not greedy", a != ids_of(base))
    claim("seed: any int64", ids_of(ask.completion(**{**hot, "seed": -2 ** 63})) != ids_of(ask.completion(**{**hot, "seed": 2 ** 63 - 1})))
    n = ask.completion(**hot, n=3)
    claim("n: the answers of one request differ", len({tuple(ids_of(n, i)) for i in range(3)}) == 3, n)
    best = ask.completion(**hot, n=2, best_of=6, logprobs=0)
    all_six = ask.completion(**hot, n=6, logprobs=0)
    mean = sorted((sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]) for c in all_six["choices"]), reverse=True)
    shown = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]) for c in best["choices"]]
    claim("best_of: of six the two likeliest", shown == mean[:2], f"{shown} {mean}")
    most = max(ids_of(base).count(i) for i in set(ids_of(base)))
    for name, fields in (("presence_penalty", {"presence_penalty": 2}), ("frequency_penalty", {"frequency_penalty": 2}),
                         ("repetition_penalty", {"repetition_penalty": 3})):
        ids = ids_of(ask.completion(return_token_ids=True, max_tokens=60, **fields))
        claim(f"{name}: less of the same", max(ids.count(i) for i in set(ids)) <= most and len(set(ids)) > len(set(ids_of(base))),
              f"{ids} {ids_of(base)}")
    pick = ids_of(base)[5]
    claim("logit_bias: 100 forces a token", set(ids_of(ask.completion(return_token_ids=True, logit_bias={str(pick): 100}))) == {pick})
    claim("logit_bias: -100 forbids one", pick not in ids_of(ask.completion(return_token_ids=True, logit_bias={str(pick): -100})))
    few = ids_of(base)[:4]
    claim("allowed_token_ids: no others", set(ids_of(ask.completion(return_token_ids=True, allowed_token_ids=few))) <= set(few))
    text = text_of(ask.chat())
    word = text.split()[-1]
    claim("bad_words: the word is not written", word not in text_of(ask.chat(bad_words=[word])).split(), f"{word} {text}")
    claim("logprobs do not depend on temperature, penalties or bias", ask.completion(max_tokens=1, logprobs=3)["choices"][0]["logprobs"]["top_logprobs"]
          == ask.completion(max_tokens=1, logprobs=3, temperature=1.7, top_k=1, presence_penalty=1.5)["choices"][0]["logprobs"]["top_logprobs"])


# ---- what comes out --------------------------------------------------------------------------------------------------


def logprobs(ask):
    a = ask.completion(logprobs=2, return_tokens_as_token_ids=True, return_token_ids=True, max_tokens=4)
    l = a["choices"][0]["logprobs"]
    claim("return_tokens_as_token_ids: tokens are token_id:N", l["tokens"] == [f"token_id:{i}" for i in ids_of(a)] and
          all(k.startswith("token_id:") for top in l["top_logprobs"] for k in top), l)
    c = ask.chat(logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True, return_token_ids=True, max_tokens=4)
    claim("and in a chat", [t["token"] for t in c["choices"][0]["logprobs"]["content"]] == [f"token_id:{i}" for i in ids_of(c)], c)
    claim("top_logprobs without logprobs is 400", ask.chat(400, top_logprobs=2)["error"].get("param") == "top_logprobs")
    p = ask.completion(prompt_logprobs=2, max_tokens=1)
    rows = p["choices"][0].get("prompt_logprobs")
    claim("prompt_logprobs: an entry per prompt token, the first null", rows is not None and len(rows) == p["usage"]["prompt_tokens"] and
          rows[0] is None and all(len(r) in (2, 3) for r in rows[1:]), rows)
    claim("prompt_logprobs with stream is 400", ask.completion(400, prompt_logprobs=2, stream=True)["error"].get("param") == "prompt_logprobs")
    sampled = ask.completion(prompt="Zq!", temperature=2, seed=4, logprobs=1, max_tokens=30)["choices"][0]["logprobs"]
    sizes = {len(t) for t in sampled["top_logprobs"]}
    claim("top_logprobs hold the chosen token beside the k best", sizes == {1, 2} and all(
        t in top and top[t] == v for t, v, top in zip(sampled["tokens"], sampled["token_logprobs"], sampled["top_logprobs"])), sampled)
    greedy = ask.completion(prompt=[5, 6, 7, 1, 9], echo=True, logprobs=1, max_tokens=1, stop=[])["choices"][0]["logprobs"]
    claim("lm-eval's contract: prompt + 1 entries, greedy test by exact equality", len(greedy["tokens"]) == 6 and
          greedy["token_logprobs"][-1] == max(greedy["top_logprobs"][-1].values()), greedy)
    ends = ask.send("/v1/completions", {"prompt": CHAT[0]["content"], "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0,
                                        "logit_bias": {"1": 100}}, 200)
    claim("and so when the made token is EOS", len(ends["choices"][0]["logprobs"]["tokens"]) == ends["usage"]["prompt_tokens"] + 1, ends)


def streams(ask):
    server = ask.server

    def stream(path, **fields):
        a = server.post(path, {"stream": True, "temperature": 0, "max_tokens": 12, "ignore_eos": True, **fields})
        events, done = events_of(a.body)
        return events, done, a

    events, done, a = stream("/v1/completions", prompt=PROMPT, stream_options={"include_usage": True})
    claim("stream: headers of an event stream", a.headers["Content-Type"] == "text/event-stream; charset=utf-8" and
          a.headers["Cache-Control"] == "no-cache" and a.headers["X-Accel-Buffering"] == "no", a.headers)
    claim("stream_options.include_usage: null, and once at the end", done and all(e["usage"] is None for e in events[:-1]) and
          events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 12, events[-2:])
    claim("id, created and model are equal in all events", len({(e["id"], e["created"], e["model"], e["object"]) for e in events}) == 1)
    claim("timings come with the last choice's event", "timings" in events[-2] and events[-2]["choices"][0]["finish_reason"] == "length",
          events[-2])
    events, done, _ = stream("/v1/chat/completions", messages=CHAT, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [e["usage"]["completion_tokens"] for e in events]
    claim("stream_options.continuous_usage_stats: a running count", counts == sorted(counts) and counts[0] <= 1 and counts[-1] == 12, counts)
    events, done, _ = stream("/v1/completions", prompt=["Tom", "Anna"], n=2, return_token_ids=True)
    per = {i: [e["choices"][0] for e in events if e["choices"] and e["choices"][0]["index"] == i] for i in range(4)}
    claim("stream with prompts and n: each choice has its events and one end", done and all(
        [c["finish_reason"] for c in per[i]].count("length") == 1 and sum(len(c.get("token_ids") or []) for c in per[i]) == 12 for i in per),
        {i: len(per[i]) for i in per})
    claim("stream_options without stream is 400", ask.completion(400, stream_options={"include_usage": True})["error"].get("param") ==
          "stream_options")
    claim("best_of above n with stream is 400", ask.completion(400, stream=True, best_of=2)["error"].get("param") == "best_of")


# ---- constraints, tools ----------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": -5, "maximum": 40},
                                           "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "minItems": 1, "maxItems": 3},
                                           "x": {"anyOf": [{"type": "boolean"}, {"const": "no"}]}},
          "required": ["name", "n", "tags", "x"], "additionalProperties": False}


def constraints(ask):
    wild = dict(temperature=1.5, max_tokens=200)
    bad = []
    for seed in range(12):
        a = ask.chat(**wild, seed=seed, response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}})
        try:
            jsonschema.validate(json.loads(text_of(a)), SCHEMA)
        except ValueError as error:
            bad.append(f"{error} {a}")
        except jsonschema.ValidationError as error:
            bad.append(f"{error} {a}")
    claim("response_format json_schema: valid at temperature 1.5, 12 of 12", not bad, bad)
    bad = []
    for seed in range(6):
        a = ask.chat(**{**wild, "max_tokens": 400}, seed=seed, response_format={"type": "json_object"})
        try:
            if not isinstance(json.loads(text_of(a)), dict):
                bad.append(a)
        except ValueError:
            if a["choices"][0]["finish_reason"] != "length":  # only what the length cut may be no JSON
                bad.append(a)
    claim("response_format json_object: an object, or cut by the length", not bad, bad)
    claim("response_format text: as without", text_of(ask.chat(response_format={"type": "text"})) == text_of(ask.chat()))
    made = {}
    for kind, value in (("regex", "[ab]{3}-[0-9]{2}"), ("choice", ["red", "green"]), ("grammar", 'root ::= "x" ("y" | "z") "!"'),
                        ("json", {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2})):
        made[kind] = text_of(ask.completion(**wild, seed=3, ignore_eos="absent", structured_outputs={kind: value}))
    claim("structured_outputs: regex, choice, grammar, json", re.fullmatch("[ab]{3}-[0-9]{2}", made["regex"]) and made["choice"] in ("red", "green")
          and made["grammar"] in ("xy!", "xz!") and re.fullmatch(r"\[\s*(true|false)\s*,\s*(true|false)\s*\]", made["json"]), made)
    claim("two constraints at once are 400", ask.completion(400, structured_outputs={"regex": "a", "choice": ["b"]})["error"].get("param"))


def tool(name, **properties):
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}}}


def tools(ask):
    both = [tool("add", a={"type": "integer", "minimum": 0, "maximum": 99}), tool("flip", on={"type": "boolean"})]
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in both}

    def valid(message):
        calls = message.get("tool_calls") or []
        for call in calls:
            jsonschema.validate(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])
        return calls

    wild = dict(temperature=1.2, tools=both, max_tokens=300)
    named = ask.chat(**wild, seed=1, tool_choice={"type": "function", "function": {"name": "flip"}})
    claim("tool_choice by name: that one, with valid arguments", [c["function"]["name"] for c in valid(named["choices"][0]["message"])] == ["flip"]
          and named["choices"][0]["finish_reason"] == "tool_calls", named)
    seen = [ask.chat(**wild, seed=s, tool_choice="required", parallel_tool_calls=False) for s in range(6)]
    claim("tool_choice required: a valid call; parallel_tool_calls false: one", all(len(valid(a["choices"][0]["message"])) == 1 and
          a["choices"][0]["finish_reason"] == "tool_calls" for a in seen), seen)
    c = openai.OpenAI(base_url=ask.server.url + "/v1", api_key="none", max_retries=0)
    pieces, first = [], None
    for k in c.chat.completions.create(model=NAME, messages=CHAT, max_tokens=300, seed=2, temperature=1.2, tools=both, tool_choice="required",
                                       parallel_tool_calls=False, stream=True):
        for t in k.choices[0].delta.tool_calls or []:
            first = first or t
            pieces.append(t.function.arguments or "")
    whole = ask.chat(**{**wild, "seed": 2}, tool_choice="required", parallel_tool_calls=False)["choices"][0]["message"]["tool_calls"]
    claim("streamed arguments come in pieces that are the whole", first and first.id and first.type == "function" and first.index == 0 and
          first.function.name == whole[0]["function"]["name"] and "".join(pieces) == whole[0]["function"]["arguments"] and
          len([p for p in pieces if p]) > 1, f"{pieces} {whole}")
    none = ask.chat(tools=both, tool_choice="none")
    claim("tool_choice none: text", none["choices"][0]["message"]["content"] and not none["choices"][0]["message"].get("tool_calls"), none)
    again = ask.chat(messages=[*CHAT, {"role": "assistant", "content": None, "tool_calls": whole},
                               {"role": "tool", "tool_call_id": whole[0]["id"], "content": "7"}], tools=both)
    claim("a conversation with a call and its result goes on", again["usage"].get("completion_tokens", 0) > 0, again)
    claim("tool_choice without tools is 400", ask.chat(400, tool_choice="required")["error"].get("param") == "tool_choice")


# ---- the rest --------------------------------------------------------------------------------------------------------


def accepted(ask):
    base = text_of(ask.chat())
    for name, value in (("user", "u"), ("request_id", "r"), ("priority", 0), ("reasoning_effort", "low"), ("cache_salt", "s"), ("suffix", None),
                        ("use_beam_search", False), ("spaces_between_special_tokens", False), ("unknown_field", {"a": [1]})):
        claim(f"{name}: {value!r} changes nothing", text_of(ask.chat(**{name: value})) == base)
    for name, value in (("suffix", "x"), ("use_beam_search", True), ("logits_processors", ["x"]), ("guided_json", {})):
        claim(f"{name}: not built is 501 by name", ask.completion(501, **{name: value})["error"].get("param") == name)
    long = "Nina has 48 pens and 5 boxes. " * 8
    ask.completion(prompt=long, cache_salt="one")
    hit = ask.completion(prompt=long, cache_salt="one")["usage"]["prompt_tokens_details"]["cached_tokens"]
    miss = ask.completion(prompt=long, cache_salt="two")["usage"]["prompt_tokens_details"]["cached_tokens"]
    claim("cache_salt: prefixes are shared within a salt only", hit > 0 and miss == 0, f"{hit} {miss}")
    given = ask.server.get("/v1/models", headers={"X-Request-Id": "my.id-1_A"}).headers["X-Request-Id"]
    made = ask.server.get("/v1/models", headers={"X-Request-Id": "no good"}).headers["X-Request-Id"]
    claim("X-Request-Id: given back when well formed, else new", given == "my.id-1_A" and re.fullmatch(r"[A-Za-z0-9._-]{1,128}", made) and
          made != "no good", f"{given} {made}")
    timings = ask.chat()["timings"]
    claim("timings: the nine keys", set(timings) == {"queue_ms", "ttft_ms", "prompt_n", "prompt_ms", "prompt_per_second", "cached_n",
                                                     "predicted_n", "predicted_ms", "predicted_per_second"}, timings)


def errors(ask):
    c = openai.OpenAI(base_url=ask.server.url + "/v1", api_key="none", max_retries=0)
    claim("models.retrieve: the model", c.models.retrieve(NAME).id == NAME)
    cases = (("BadRequestError", 400, "temperature", lambda: c.completions.create(model=NAME, prompt="x", temperature=3)),
             ("NotFoundError", 404, "model", lambda: c.completions.create(model="other", prompt="x")),
             ("NotFoundError", 404, "model", lambda: c.models.retrieve("other")),
             ("NotFoundError", 404, None, lambda: c.embeddings.create(model=NAME, input="x")),
             ("InternalServerError", 501, "suffix", lambda: c.completions.create(model=NAME, prompt="x", suffix="y")))
    for kind, status, param, call in cases:
        try:
            call()
            claim(f"{status} is {kind}", False, "no error")
        except openai.APIStatusError as e:
            claim(f"{status} {param or ''} is {kind} with the error as its body", type(e).__name__ == kind and e.status_code == status and
                  e.body["code"] == status and e.body["param"] == param and e.body["message"] and e.body["type"].endswith("Error") and
                  e.request_id, f"{type(e)} {e.body} {e.request_id}")


def main():
    chosen = sys.argv[2:]
    with Server(PROGRAM) as server:
        ask = Ask(server)
        for group in (prompts, conversations, templates, lengths, sampling, logprobs, streams, constraints, tools, accepted, errors):
            if not chosen or any(part in group.__name__ for part in chosen):
                group(ask)
        claim("the server ends with 0", server.stop() == 0, server.log)
        claim("the log holds no defect", not re.search("BUG|ERROR: |runtime error|invariant", server.log), server.log)
    sys.exit(plan())


main()
