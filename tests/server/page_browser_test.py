"""The chat page: what it is made of, and what it does in a real browser against a server with made-up numbers.

    page_browser_test.py PATH/TO/page_dump [--static] [--shots FOLDER]

--static leaves the browser out; without Chromium the rest is skipped and says so.  Prints TAP."""
import base64
import hashlib
import pathlib
import re
import sys
import time

import browser
import page_mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tap import claim, plan, skip  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DUMP = sys.argv[1]
SHOTS = pathlib.Path(sys.argv[sys.argv.index("--shots") + 1]) if "--shots" in sys.argv else None
QUESTION = "Tom has 3 boxes with 12 pens each. He gives 5 pens to Anna. How many pens are left?"


def static_claims():
    source = (ROOT / "src/server/page/index.html").read_bytes()
    mock = page_mock.Mock(DUMP)
    claim("the page is one file of at most 64 KiB", mock.page == source and len(source) <= 65536, len(source))
    claim("it names nothing outside itself", not re.search(rb"(https?:|[\"'(]//|@import|url\(|<link|<img|<iframe| src=)", source),
          re.findall(rb"(https?:|[\"'(]//|@import|url\(|<link|<img|<iframe| src=)", source))
    scripts = re.findall(rb"<script[^>]*>(.*?)</script>", source, re.S)
    digest = base64.b64encode(hashlib.sha256(scripts[0]).digest()).decode()
    policy = mock.headers["Content-Security-Policy"]
    claim("the policy's hash is that of its only script", len(scripts) == 1 and f"script-src 'sha256-{digest}';" in policy, policy)
    claim("the policy allows nothing from elsewhere", policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
          and "connect-src 'self'" in policy and "*" not in policy, policy)
    claim("the tag is the page's hash", mock.headers["ETag"] == f'"{hashlib.sha256(source).hexdigest()[:32]}"', mock.headers)
    text = source.decode()
    claim("text never enters as HTML, and nothing is stored", not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|localStorage|sessionStorage|indexedDB|\.cookie|\son\w+=",
        text))


def shot(b, name):
    if SHOTS:
        SHOTS.mkdir(parents=True, exist_ok=True)
        b.shot(SHOTS / f"{name}.png")


def ask(b, text):
    b.js("$('prompt').focus()")
    b.type(text)
    b.key("Enter")


COLOURS = """(() => { const c = $('heat'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, s = new Set();
  for (let i = 0; i < d.length; i += 4) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return s.size; })()"""


def chat(b, mock, url):
    b.view(1280, 800)
    b.open(url)
    claim("model, device and plan are shown", b.wait("ready && $('model').textContent == 'word-problems'")
          and "avx512_bf16" in b.js("$('device').textContent") and "SLOT 4, OVERLAP 1" in b.js("$('plan').textContent")
          and "layer 3: shared expert separate (overlap)" in b.js("$('plan').textContent"), b.js("document.body.innerText"))
    shot(b, "welcome")
    before = b.js(COLOURS)
    ask(b, QUESTION)
    seen = []
    while b.js("!!running") or not seen:
        seen.append(b.js("(document.querySelector('.answer .text') || {}).textContent || ''"))
        if len(seen) == 8:
            shot(b, "streaming")
        time.sleep(0.05)
    grown = sorted(set(map(len, seen)))
    claim("the text grows while it is written", len(grown) >= 5 and seen == sorted(seen, key=len), grown)
    text = b.js("document.querySelector('.answer .text').textContent")
    claim("the answer is the stream's text, characters of several bytes too", text == mock.answer, text)
    claim("markup in it stays text", b.js("document.querySelectorAll('.turn .text *').length") == 0)
    foot = b.js("document.querySelector('.answer .foot').textContent")
    claim("time to the first token, prompt and decode rate stand below it",
          re.search(r"\d ms to the first token53 tok prompt \(16 cached\)6,625 tok/s prompt58 tok\d+\.\d tok/s decode", foot), foot)
    claim("the heat map fills", b.wait(f"{COLOURS} > {before + 10}"), b.js(COLOURS))
    body = mock.bodies[-1]
    claim("defaults are the server's: no sampling field is sent", body == {
        "messages": [{"role": "user", "content": QUESTION}], "stream": True, "stream_options": {"include_usage": True},
        "model": "word-problems"}, body)

    b.wait(f"load.tokens == {mock.tokens}")
    x, y = b.js("(() => { const r = $('heat').getBoundingClientRect(), g = geometry; return [r.left + g.left + 2.5 * g.cw, r.top + g.top + 1.5 * g.rh]; })()")
    b.mouse(x, y)
    layer = mock.loads()["layers"][1]
    claim("pointing at a cell tells its count", f"Layer 2, expert 2: {layer['routed'][2]} tokens" in b.js("$('read').textContent"),
          b.js("$('read').textContent"))
    b.mouse(300, 300)
    b.js("$('heat').focus()")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", *["ArrowRight"] * 25):
        b.key(key)
    claim("arrow keys reach the shared slot and tell its mode",
          f"Layer 3, shared expert 0: {mock.tokens} tokens" in b.js("$('read').textContent")
          and "runs separately (overlap)" in b.js("$('read').textContent"), b.js("$('read').textContent"))
    shot(b, "answered")

    b.js("tab('settings')")
    b.js("$('settings').elements.temperature.focus()")
    b.type("0.5")
    b.js("$('settings').elements.system.focus()")
    b.type("Be brief.")
    b.js("$('settings').elements.stop.focus()")
    b.type("####")
    ask(b, "Again?")
    b.wait("!!running")
    b.wait("!running")
    body = mock.bodies[-1]
    claim("system prompt, sampling and the whole conversation are sent",
          [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"] and body["temperature"] == 0.5
          and body["stop"] == "####" and body["messages"][2]["content"] == mock.answer, body)
    sent = len(mock.bodies)
    b.js("$('settings').elements.temperature.value = '3'")
    ask(b, "Hot?")
    claim("a setting out of range is not sent", len(mock.bodies) == sent and b.js("$('settings').elements.temperature.classList.contains('bad')"))
    b.js("$('defaults').click(); $('prompt').value = ''")

    mock.token_ms = 100
    cut = mock.cut_streams
    ask(b, "Go on")
    b.wait("running && document.querySelectorAll('.answer .text')[2].textContent.length > 3")
    b.key("Escape")
    stopped = b.wait("!running")
    end = time.time() + 3
    while mock.cut_streams == cut and time.time() < end:
        time.sleep(0.05)
    claim("Escape stops the answer, keeps its text and drops the connection", stopped and mock.cut_streams == cut + 1
          and "stopped" in b.js("[...document.querySelectorAll('.foot')].pop().textContent"), b.js("document.body.innerText"))
    mock.token_ms = 5
    mock.fail_next = (429, "The queue is full: 1024 requests wait.")
    ask(b, "Once more")
    b.wait("!!document.querySelector('.problem')")
    claim("a refusal is shown in the server's words", "The queue is full: 1024 requests wait. Try again in 2 s."
          in b.js("document.querySelector('.problem').textContent"))
    b.js("document.querySelector('.problem button').focus()")
    b.key("Enter")
    claim("and can be tried again", b.wait("!document.querySelector('.problem') && !running") and mock.bodies[-1]["messages"][-1]["content"] == "Once more")

    b.js("$('fresh').click(); $('prompt').focus()")
    reached = set()
    for _ in range(30):
        b.key("Tab")
        reached.add(b.js("document.activeElement.id || document.activeElement.name || document.activeElement.tagName"))
    claim("Tab reaches everything", {"heat", "window", "SUMMARY"} <= reached and b.js("document.querySelectorAll('.turn').length") == 0, reached)


def looks(b, mock, url):
    """Both widths in both schemes, with an answer and the map."""
    mock.token_ms = 1
    for width, height, mobile in ((1280, 800, False), (390, 844, True)):
        for scheme in ("light", "dark"):
            b.view(width, height, scheme, 2 if mobile else 1, mobile)
            b.open(url)
            b.wait("ready && modelName")
            ask(b, QUESTION)
            b.wait("!!running")
            b.wait("!running")
            time.sleep(0.5)
            shot(b, f"{width}x{height}-{scheme}")
            for name in ("experts", "settings") if mobile else ():
                b.js(f"tab('{name}')")
                time.sleep(0.1)
                shot(b, f"{width}x{height}-{scheme}-{name}")
                b.js("true") if b.js("document.documentElement.scrollWidth") <= width else claim(f"{name} fits {width}", False)
            light = b.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128")
            claim(f"{width}x{height} {scheme}: nothing sticks out, colours follow the scheme",
                  b.js("document.documentElement.scrollWidth") <= width and light == (scheme == "light"))


def main():
    static_claims()
    if "--static" not in sys.argv:
        if not browser.find():
            skip("the page in a browser: Chromium is not installed")
        else:
            in_browser()
    sys.exit(plan())


def in_browser():
    mock = page_mock.Mock(DUMP)
    url = f"http://127.0.0.1:{page_mock.start(mock).server_address[1]}/"
    with browser.Browser() as b:
        chat(b, mock, url)
        looks(b, mock, url)
        claim("no request went elsewhere", b.requests and all(r.startswith(url) for r in b.requests), b.requests)
        claim("the console holds nothing but the refusal", [c for c in b.console if "429" not in c and "getImageData" not in c] == [], b.console)

    slow = page_mock.Mock(DUMP, loading_s=120, layers=59, experts=256)
    with browser.Browser() as b:
        b.view(1280, 800)
        b.open(f"http://127.0.0.1:{page_mock.start(slow).server_address[1]}/")
        shown = b.wait("/^loading \\d+ %$/.test($('state').textContent) && !$('track').hidden && $('welcome-title').textContent")
        shot(b, "loading")
        claim("loading is shown with its progress, and sending waits", shown == "Loading the model" and b.js("$('go').disabled"), shown)
        slow.ready_at = time.time()
        claim("the page goes on by itself when the model is ready", b.wait("ready && modelName"))
        ask(b, "x")
        b.wait("!!running")
        b.wait("!running")
        time.sleep(0.5)
        shot(b, "58-layers-256-experts")

    locked = page_mock.Mock(DUMP, key="secret")
    with browser.Browser() as b:
        b.open(f"http://127.0.0.1:{page_mock.start(locked).server_address[1]}/")
        b.wait("$('key-dialog').open")
        shot(b, "key")
        b.type("wrong")
        b.key("Enter")
        claim("a wrong key is asked for again", b.wait("$('key-dialog').open && /did not accept/.test($('key-text').textContent)"))
        b.type("secret")
        b.key("Enter")
        claim("the right one opens the page", b.wait("modelName == 'word-problems'"))
        claim("it is kept in memory only", b.js("localStorage.length + sessionStorage.length + document.cookie.length") == 0
              and "secret" not in b.js("document.documentElement.outerHTML") and b.js("$('key').value") == "")
        b.call("Page.reload")
        claim("and asked for anew after a reload", b.wait("document.readyState == 'complete' && $('key-dialog').open && apiKey === ''"))


main()
