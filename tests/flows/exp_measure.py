import re, time, datetime as dt
from .test_server_lost import *  # noqa
from ..two_machines import *  # noqa

def stamps(text):
    out = {}
    for line in text.splitlines():
        m = re.match(r"(\d+:\d+:\d+\.\d+) \| \S+\s+\| (.*)", line)
        if m: out.setdefault(m[2], dt.datetime.strptime(m[1], "%H:%M:%S.%f"))
    return out

def test_measure(team, start_server):
    start_server()
    def timed(*o):
        t = time.monotonic(); d = team.desk.run("python", "-m", "flows.pipeline", *o); s = time.monotonic()-t
        return s, d
    def show(what, s, d):
        print(what, f"{s:.2f} s wall", d.stdout.splitlines()[1])
        for l in d.stderr.splitlines():
            if re.search(r"stages, in order|Finished in state|Beginning", l): print("   ", l[:150])
    show("in place, first", *timed())
    show("in place, again", *timed())
    t = time.monotonic(); team.desk.run("dvc", "repro"); print("dvc repro no change", time.monotonic()-t)
    worker = team.box.start_worker(POOL)
    wait_for(lambda: "started!" in (team.box.folder / "worker.log").read_text())
    for lora in (2, 3, 4, 5, 6):
        (team.desk.clone / "params.yaml").write_text(f"lora: {lora}\nfull: 1\n")
        s, d = timed("--stage", "train@lora", "--card-pool", POOL)
        print("remote", s, re.findall(r"taken in [\d.]+ s", d.stderr)[:1], [l[:12]+l[-40:] for l in d.stderr.splitlines() if "on the worker" in l])
        w = [l for l in (team.box.folder/"worker.log").read_text().splitlines()][-16:]
        print("\n".join("     "+l[:100] for l in w if "submitting" in l or "Beginning" in l or "hello" in l or "Finished" in l))
    for lora in (12, 13, 14):
        (team.desk.clone / "params.yaml").write_text(f"lora: {lora}\nfull: 1\n")
        t = time.monotonic(); team.desk.run("dvc", "repro", "-s", "train@lora"); a = time.monotonic()-t
        (team.desk.clone / "params.yaml").write_text(f"lora: {lora+10}\nfull: 1\n")
        s, d = timed("--stage", "train@lora")
        st = d.stderr.splitlines()
        print("in place one changed: dvc repro -s", round(a, 2), "flow wall", round(s, 2), [l[:13] for l in st if "Running stage" in l or "train@lora' - Finished" in l or "'prepare' - Finished" in l])
    worker.terminate(); worker.wait(60)
