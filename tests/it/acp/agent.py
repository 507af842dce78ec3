"""An ACP agent that does what its prompts say, for tests: `say WORDS`, `wait`, `hang`, `crash`, and so on, below.

STUB_CAN names what it can do (load resume resume-fails close modes config auth images), or
is or does not do (in-yolo login-first nonsense version-2 silent load-busy load-busy-once load-late), and
how it speaks (noise pretty framed); STUB_STORE is the file with its sessions,
STUB_LOG gets every line that it is sent.
"""
import json
import os
import subprocess
import sys
import threading
import time

CAN = os.environ.get("STUB_CAN", "").split()
STORE, LOG = os.environ["STUB_STORE"], os.environ["STUB_LOG"]
OUT = threading.Lock()
sessions, cancelled, answers, answered = {}, {}, {}, threading.Condition()
evicted, busy = set(), set()
MODES = {"currentModeId": "yolo" if "in-yolo" in CAN else "ask", "availableModes": [{"id": "ask", "name": "Ask"}, {"id": "plan", "name": "Plan"}]}
# An option whose category says more than its id.
CONFIG = [{"id": "style", "name": "Style", "category": "mode", "type": "select", "currentValue": "careful",
           "options": [{"value": "careful", "name": "Careful"}, {"value": "quick", "name": "Quick"}, {"value": "yolo", "name": "All"}]},
          {"id": "allow-all", "name": "All", "category": "misc", "type": "boolean", "currentValue": False}]


def write(line):
    with OUT:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def send(**message):
    write(json.dumps({"jsonrpc": "2.0", **message}))


def update(session, kind, **fields):
    send(method="session/update", params={"sessionId": session, "update": {"sessionUpdate": kind, **fields}})


def say(session, text, **more):
    update(session, "agent_message_chunk", content={"type": "text", "text": text}, **more)


def call(session, kind, id, **fields):
    update(session, kind, toolCallId=id, **fields)


def text_of(text):
    return [{"type": "content", "content": {"type": "text", "text": text}}]


def ask(id, method, **params):
    """Asks the client, and waits for its answer."""
    send(id=id, method=method, params=params)
    with answered:
        answered.wait_for(lambda: json.dumps(id) in answers)
        return answers.pop(json.dumps(id))


def told(answer):
    return json.dumps(answer.get("result", {"error": answer.get("error", {}).get("code")}), sort_keys=True)


def permission(session, id, number=1):
    call = {"toolCallId": f"c{number}", "title": "touch a", "kind": "execute", "rawInput": {"command": "touch a"}}
    options = [{"optionId": "yes", "name": "Yes", "kind": "allow_once"}, {"optionId": "no", "name": "No", "kind": "reject_once"}]
    return ask(id, "session/request_permission", sessionId=session, toolCall=call, options=options)


def turn(id, session, blocks):
    text = blocks[0]["text"]
    if session in evicted:
        data = {"details": f"Session not found: {session}"}
        return send(id=id, error={"code": -32603, "message": "Internal error", "data": data})
    sessions[session].append(text)
    json.dump(sessions, open(STORE, "w"))
    word, _, rest = text.partition(" ")
    stop = "end_turn"
    if word == "say":
        say(session, rest)
    elif word == "blocks":
        say(session, json.dumps(blocks[1:], sort_keys=True))
    elif word == "history":
        say(session, " | ".join(sessions[session][:-1]))
    elif word == "wait":
        say(session, "waiting")
        cancelled[session].wait()
        say(session, "stopping")
        stop = "cancelled"
    elif word == "meet":
        # Two turns at once, or none.
        open(rest.split()[0], "w").close()
        while not os.path.exists(rest.split()[1]):
            time.sleep(0.01)
        say(session, "met")
    elif word == "meet-badly":
        # While two turns are on: lines that name one of them, and one that names none.
        open(rest.split()[0], "w").close()
        while not os.path.exists(rest.split()[1]):
            time.sleep(0.01)
        say(session, "x" * 3_000_000)
        write("no JSON")
        open(rest.split()[0] + "-done", "w").close()
        while not os.path.exists(rest.split()[1] + "-done"):
            time.sleep(0.01)
        say(session, "met")
    elif word == "flood":
        say(session, "flooding")
        say(session, "x" * 1_000_000)
        cancelled[session].wait()
        stop = "cancelled"
    elif word == "hang":
        say(session, "hanging")
        return
    elif word == "answer":
        # As the reason of its end; and before that a word, if it is given one.
        said, _, answer = rest.partition(" ")
        if said != "-":
            say(session, said)
        return send(id=id, result=json.loads(answer))
    elif word == "crash":
        say(session, "crashing")
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(3)
    elif word == "bye":
        say(session, "bye")
        send(id=id, result={"stopReason": stop})
        os._exit(0)
    elif word == "big":
        say(session, "x" * int(rest))
    elif word == "garbage":
        for line in ("no JSON", "", "  ", '{"cut', '{"level": "info"}', "[1]", '{"half": "\\ud83d'):
            write(line)
        for wrong in (5, None, ["a"]):
            send(method="session/update", params={"sessionId": wrong, "update": {"sessionUpdate": "agent_message_chunk",
                 "content": {"type": "text", "text": "nobody's"}}})
        send(method="session/update", params={"sessionId": session, "update": {"sessionUpdate": 5}})
        say(session, "still here")
    elif word == "permission":
        say(session, told(permission(session, json.loads(rest))))
        stop = "cancelled" if cancelled[session].is_set() else stop
    elif word == "permissions":
        asking = [threading.Thread(target=permission, args=(session, number, number)) for number in range(2)]
        [thread.start() for thread in asking]
        [thread.join() for thread in asking]
        stop = "cancelled"
    elif word == "ask":
        method, params = json.loads(rest)
        say(session, told(ask("a", method, sessionId=session, **params)))
    elif word == "terminal":
        id_of = ask("t", "terminal/create", sessionId=session, command="sh", args=["-c", rest])["result"]["terminalId"]
        exited = ask("u", "terminal/wait_for_exit", sessionId=session, terminalId=id_of)
        say(session, told(exited) + told(ask("v", "terminal/output", sessionId=session, terminalId=id_of)))
    elif word == "forget":
        # A tool that goes on by itself.
        tool = subprocess.Popen(["tail", "-f", "/dev/null"], start_new_session=True, stdin=subprocess.DEVNULL)
        say(session, f"tool {tool.pid}.")
        cancelled[session].wait()
        stop = "cancelled"
    elif word == "late":
        say(session, "in time", messageId="m1")
        call(session, "tool_call", "t", title="look", status="in_progress")
        send(id=id, result={"stopReason": stop})
        call(session, "tool_call_update", "t", status="completed", content=text_of("seen"))
        say(session, ", and late", messageId="m1")
        return
    elif word == "later":
        # When told so: in the midst of the next turn, or when there is none.
        say(session, "in time", messageId="m1")
        send(id=id, result={"stopReason": stop})
        while not os.path.exists(rest):
            time.sleep(0.01)
        say(session, "too late", messageId="m1")
        update(session, "session_info_update", title="A late title")
        open(rest + "-said", "w").close()
        return
    elif word == "meanwhile":
        say(session, "one ", messageId="m2")
        open(rest, "w").close()
        while not os.path.exists(rest + "-said"):
            time.sleep(0.01)
        say(session, "two", messageId="m2")
    elif word == "again":
        for _ in range(3):
            for piece in ("Hello ", "world! "):
                say(session, piece, messageId="m1")
    elif word == "evict":
        say(session, "evicting")
        evicted.add(session)
    elif word == "child":
        say(session, told(permission("child-of-" + session, 7)))
    elif word == "same-id":
        say(session, told(permission(session, 7)) + told(permission(session, 7, 2)))
    elif word == "request":
        write(rest.replace("SESSION", session))
        with answered:
            answered.wait_for(lambda: '"odd"' in answers)
        say(session, told(answers.pop('"odd"')))
    elif word == "fail":
        return send(id=id, error=json.loads(rest))
    elif word == "switch":
        update(session, "current_mode_update", currentModeId=rest)
    elif word == "cost":
        update(session, "usage_update", used=1, size=2, cost={"amount": float(rest), "currency": "USD"})
    send(id=id, result={"stopReason": stop})


def opened(id, session, **more):
    cancelled[session] = threading.Event()
    offers = {**({"modes": MODES} if "modes" in CAN else {}), **({"configOptions": CONFIG} if "config" in CAN else {})}
    send(id=id, result={**more, **offers})


def request(id, method, params):
    session = params.get("sessionId")
    if method == "initialize" and "login-first" in CAN:
        send(id=id, error={"code": -32000, "message": "Authentication required", "data": "run `stub login`"})
    elif method == "initialize" and "nonsense" in CAN:
        send(id=id, result="hello")
    elif method == "initialize" and "version-2" in CAN:
        send(id=id, result={"protocolVersion": 2})
    elif method == "initialize" and "silent" in CAN:
        write("I only talk to people.")
    elif method == "initialize":
        can = {"loadSession": "load" in CAN, "promptCapabilities": {"image": "images" in CAN}, "sessionCapabilities": {}}
        can["sessionCapabilities"] = {name: {} for name in ("resume", "close") if name in CAN}
        result = {"jsonrpc": "2.0", "id": id, "result": {"protocolVersion": 1, "agentCapabilities": can}}
        line = json.dumps(result)
        if "noise" in CAN:
            write("Welcome to the stub\n")
            write("\x1b]0;stub\x07\x1b[?25l" + line + "\x1b[0m")
        elif "pretty" in CAN:
            write(json.dumps(result, indent=2))
        elif "framed" in CAN:
            sys.stdout.write(f"Content-Length: {len(line)}\r\n\r\n{line}")
            sys.stdout.flush()
        else:
            write(line)
    elif method == "session/new" and "auth" in CAN:
        send(id=id, error={"code": -32000, "message": "Authentication required"})
    elif method == "session/new":
        session = f"s{len(sessions)}-{os.getpid()}"
        sessions[session] = []
        update(session, "session_info_update", title="An early title")
        opened(id, session, sessionId=session)
    elif method == "session/resume" and "resume-fails" in CAN or session not in sessions:
        send(id=id, error={"code": -32002, "message": "no such session"})
    elif method in ("session/load", "session/resume"):
        if "load-busy" in CAN or "load-busy-once" in CAN and session not in busy:
            busy.add(session)
            return send(id=id, error={"code": -32603, "message": "Internal error: disk busy"})
        evicted.discard(session)
        if "load-late" in CAN:
            opened(id, session)
            time.sleep(0.5)
            update(session, "user_message_chunk", content={"type": "text", "text": "old"})
            say(session, "told late", messageId="m1")
            call(session, "tool_call", "old", title="old", status="completed")
            return
        if method == "session/load":
            for text in sessions[session]:
                update(session, "user_message_chunk", content={"type": "text", "text": text})
                say(session, "told again")
        opened(id, session)
    elif method == "session/prompt":
        cancelled[session].clear()
        threading.Thread(target=turn, args=(id, session, params["prompt"]), daemon=True).start()
    else:
        send(id=id, result={})


if os.path.exists(STORE):
    sessions = json.load(open(STORE))
for line in sys.stdin:
    with open(LOG, "a") as log:
        log.write(line)
    message = json.loads(line)
    if message.get("method") == "session/cancel":
        cancelled[message["params"]["sessionId"]].set()
    elif "method" in message and "id" in message:
        request(message["id"], message["method"], message["params"])
    elif "id" in message:
        with answered:
            answers[json.dumps(message["id"])] = message
            answered.notify_all()
