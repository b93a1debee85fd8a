"""gpt2c rlvr: what it tells and saves, going on, and being stopped."""

import json
import signal

from families import families, model_of
from programs import call, start

from gpt2c.models.files import load, load_run


def rlvr(folder, *words, code=0):
    return call(folder, "rlvr", *words, code=code)


@families
def test_the_program_trains_and_saves_what_others_load(family, tmp_path):
    model_of(family).save(tmp_path / "start.safetensors")
    words = ["--steps", 3, "--prompts", 2, "--out-dir", "run", "--log-every", 1, "--save-every", 2, "--eval-prompts", 4]
    out = rlvr(tmp_path, "start.safetensors", *words, "--prompt", "abc:", "--gen-length", 5).stdout
    assert "before: reward" in out and "after: reward" in out and "step    3/3 | reward" in out and "eta" in out
    assert '" -> "' in out and out.rstrip().endswith("checkpoint run/ckpt_00000003.safetensors")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2] and {"reward", "success", "loss", "grad_norm", "best"} <= set(rows[0])
    assert {path.name for path in (tmp_path / "run").glob("ckpt*")} == {f"ckpt_0000000{n}.safetensors" for n in (2, 3)}
    model = load(tmp_path / "run/ckpt_00000003.safetensors")
    assert model.tokenizer.encode("abc") and (model.params.flat != model_of(family).params.flat).any()


def test_flags_of_the_document(tmp_path):
    model_of("hybrid").save(tmp_path / "checkpoint.safetensors")
    files = ["--loadCheckpoint=./checkpoint.safetensors", "--savePath=./model.bin", "--saveOnComplete=true"]
    ignored = ["--useBPE=true", "--bpeLoadPath=./tokenizer.json", "--trainingFile=./data.txt", "--trainingText=abc"]
    words = ["--rlTask=arithmetic", "--rlEpisodes=2", "--rlLearningRate=0.0001", "--evalPrompts=0"]
    out = call(tmp_path, "rl", *files, *ignored, *words).stdout
    assert "rlvr: arithmetic with hybrid" in out and load(tmp_path / "model.bin").family == "hybrid"
    assert "name a checkpoint" in rlvr(tmp_path, code=2).stderr
    refused = rlvr(tmp_path, "checkpoint.safetensors", "--group-size", 1, code=2)
    assert "--group-size is 1, expected at least 2" in refused.stderr
    assert "--learning-rate is 0, with which" in rlvr(tmp_path, "checkpoint.safetensors", "--lr", 0, code=2).stderr


def test_a_run_that_goes_on_is_the_same_run(tmp_path):
    model_of("hybrid").save(tmp_path / "start.safetensors")
    words = ["start.safetensors", "--task", "reverse", "--prompts", 3, "--lr", "1e-3", "--eval-prompts", 3]
    rlvr(tmp_path, *words, "--steps", 4, "--out-dir", "straight")
    rlvr(tmp_path, *words, "--steps", 2, "--out-dir", "again", "--threads", 1)
    done = rlvr(tmp_path, "--resume", "--out-dir", "again", "--steps", 4)
    out, err = done.stdout, done.stderr
    assert "resumed from again/ckpt_00000002.safetensors at step 2" in out and "steps 2 -> 4" in out and "before:" not in out
    last = "ckpt_00000004.safetensors"
    assert (tmp_path / "again" / last).read_bytes() == (tmp_path / "straight" / last).read_bytes() and not err
    one, other = (
        [
            {name: value for name, value in json.loads(line).items() if name != "ms"}
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("again", "straight")
    )
    assert one == other and [row["step"] for row in one] == [0, 1, 2, 3]
    assert "already at step 4 of 4: nothing to learn" in rlvr(tmp_path, "--resume", f"again/{last}").stdout
    refused = call(tmp_path, "train", "--resume", f"again/{last}", code=4)
    assert "holds a run of gpt2c rlvr, which that resumes" in refused.stderr
    assert "holds weights only" in rlvr(tmp_path, "--resume", "start.safetensors", code=4).stderr


def test_a_run_that_is_stopped_keeps_what_it_learned(tmp_path):
    model_of().save(tmp_path / "start.safetensors")
    words = ["--steps", 100_000, "--out-dir", "run", "--log-every", 1, "--eval-prompts", 0]
    process = start(tmp_path, "rlvr", "start.safetensors", *words)
    for line in process.stdout:
        if line.startswith("step    3/"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped: SIGINT" in out and "Traceback" not in err
    (saved,) = (tmp_path / "run").glob("ckpt*")
    model, state = load_run(saved)
    assert (model.params.flat != model_of().params.flat).any() and state.values["step"] >= 3
    done = state.values["step"]
    out = rlvr(tmp_path, "--resume", "--out-dir", "run", "--steps", done + 1).stdout
    assert f"resumed from {saved.relative_to(tmp_path)} at step {done}" in out and f"done: step {done + 1}" in out
