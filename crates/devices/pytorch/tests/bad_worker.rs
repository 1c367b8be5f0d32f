//! Workers in Python that misbehave, each met with one typed fault. They need an interpreter and no torch.

mod support;

use std::path::Path;
use std::time::Duration;
use toprope_program::{Allocation, Device, Fault, FaultKind};
use toprope_protocol::remote::{RemoteDevice, SCRIPT, WorkerCommand, WorkerOptions};
use toprope_protocol::{Hello, VERSION};
use toprope_pytorch::{OpenOptions, command, interpreter, open, open_with};
use toprope_world::{RealWorld, World};

/// Reads and writes frames; each test's worker goes on from here.
const FRAMES: &str = r#"
import json, os, sys, time
def get():
    lengths = sys.stdin.buffer.read(8)
    if len(lengths) < 8: os._exit(0)
    head = json.loads(sys.stdin.buffer.read(int.from_bytes(lengths[:4], "little")))
    sys.stdin.buffer.read(int.from_bytes(lengths[4:], "little"))
    return head
def put(request, payload=b"", **fields):
    head = json.dumps({"id": request["id"], "generation": request["generation"], **fields}).encode()
    sys.stdout.buffer.write(len(head).to_bytes(4, "little") + len(payload).to_bytes(4, "little") + head + payload)
    sys.stdout.buffer.flush()
DESCRIPTION = {"name": "x", "hardware": "", "level": "", "versions": [], "dtypes": ["f32"], "memory_bytes": None,
               "units": 1, "deterministic": True, "emulated": False, "health": []}
hello = get()
"#;

const UP: &str = "put(hello, outcome='ready', version=VERSION, description=DESCRIPTION)\n";

/// Starts a script as a worker; `None` where there is no Python.
fn start(script: &str) -> Option<RemoteDevice> {
    let program = match interpreter::find(None) {
        Ok(program) => program,
        Err(error) => {
            eprintln!("SKIPPED, NOTHING WAS TESTED: {error}");
            return None;
        }
    };
    let text = format!("VERSION = {VERSION}\n{FRAMES}{script}");
    let arguments = vec!["-c".into(), text.into()];
    let command = WorkerCommand { program, arguments, script: None };
    let world = RealWorld::new();
    let regions = [world.shared_memory().create("test", 64).expect("shared memory")];
    let hello = Hello {
        version: VERSION,
        toprope: String::new(),
        run: String::new(),
        rank: 0,
        device: "pytorch:cpu".into(),
        threads: None,
        level: None,
        regions: Vec::new(),
        progress: (0, 0),
        faults: None,
    };
    let patience = Duration::from_millis(700);
    let options = WorkerOptions { command: &command, regions: &regions, hello, generation: 5, patience };
    Some(RemoteDevice::launch(&world, options).expect("the worker starts"))
}

const UP_LIMIT: Duration = Duration::from_secs(20);

/// The fault of the first request behind `hello`.
fn first_fault(script: &str) -> Option<Fault> {
    let mut device = start(script)?;
    Some(match device.ready(UP_LIMIT) {
        Err(fault) => fault,
        Ok(None) => Fault::new("test", FaultKind::Hang { waited_ms: 0 }),
        Ok(Some(_)) => match device.allocate(Allocation::Own(64)) {
            Err(fault) => fault,
            Ok(buffer) => device.read(buffer, 0, &mut [0; 64]).expect_err("the worker misbehaves"),
        },
    })
}

#[test]
fn each_way_of_misbehaving_is_one_typed_fault() {
    let buffer = "get_it = get()\nput(get_it, outcome='buffer', buffer=0)\n";
    for (name, script, class, words) in [
        ("dies at once", "os._exit(3)".to_string(), "lost", "3"),
        ("is killed", "os.kill(os.getpid(), 9)".into(), "lost", "signal 9"),
        ("raises", "raise ValueError('x')".into(), "lost", "1"),
        ("dies later", format!("{UP}get()\nos._exit(4)"), "lost", "4"),
        ("hangs", format!("{UP}get()\ntime.sleep(60)"), "hang", ""),
        (
            "is late",
            format!("{UP}r = get()\ntime.sleep(2)\nput(r, outcome='buffer', buffer=0)\nget()"),
            "hang",
            "",
        ),
        (
            "answers for another generation",
            format!("{UP}r = get()\nr['generation'] = 4\nput(r, outcome='buffer', buffer=0)\nget()"),
            "hang",
            "",
        ),
        (
            "answers another request",
            format!("{UP}r = get()\nr['id'] = 77\nput(r, outcome='buffer', buffer=0)\nget()"),
            "lost",
            "request 77",
        ),
        ("answers something else", format!("{UP}put(get(), outcome='done')\nget()"), "lost", "`allocate`"),
        (
            "lies about a shape",
            format!("{UP}{buffer}put(get(), payload=b'123', outcome='done')\nget()"),
            "lost",
            "3 bytes where 64",
        ),
        (
            "speaks another version",
            "put(hello, outcome='ready', version=VERSION + 1, description=DESCRIPTION)\nget()".into(),
            "lost",
            "version 3",
        ),
        (
            "sends no frame",
            "os.write(1, b'hello there, how are you')\nget()\ntime.sleep(9)".into(),
            "lost",
            "frame",
        ),
        (
            "sends half an answer",
            format!("{UP}get()\nsys.stdout.buffer.write(bytes([9, 0, 0]))\nsys.stdout.flush()\nos._exit(0)"),
            "lost",
            "0",
        ),
    ] {
        let Some(fault) = first_fault(&script) else { return };
        let told = fault.to_string();
        assert_eq!(fault.kind.class().name(), class, "{name}: {told}");
        assert!(told.contains(words), "{name}: {told}");
    }
}

#[test]
fn another_version_of_the_supervisor_is_refused_by_the_script() {
    let Ok(mut own) = command("pytorch:cpu", None) else {
        eprintln!("SKIPPED, NOTHING WAS TESTED: there is no Python");
        return;
    };
    let older = toprope_pytorch::WORKER.replace("PROTOCOL = 2", "PROTOCOL = 1");
    own.script = Some(String::leak(older));
    let options = OpenOptions { python: None, threads: None, regions: &[] };
    let error = open_with(&RealWorld::new(), "pytorch:cpu", &own, &options).unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("one installation"), "{error}");
}

/// An interpreter with a torch that a test makes up.
fn with_torch(text: Option<&str>) -> Option<(tempfile::TempDir, WorkerCommand)> {
    let program = interpreter::find(None).ok()?;
    let folder = tempfile::tempdir().expect("a folder");
    let mut own = command("pytorch:cpu", Some(&program)).expect("an interpreter");
    // No site packages: no torch but the one beside.
    own.arguments.splice(0..0, ["-S".into(), "-E".into()]);
    if let Some(text) = text {
        std::fs::create_dir(folder.path().join("torch")).expect("writes");
        std::fs::write(folder.path().join("torch/__init__.py"), text).expect("writes");
        let run = format!(
            "import sys; sys.path.insert(0, {:?}); exec(compile(open(sys.argv[1], 'rb').read(), 'w.py', 'exec'))",
            folder.path().display().to_string()
        );
        let at = own.arguments.iter().position(|argument| argument == SCRIPT).expect("the script");
        own.arguments[at - 1] = run.into();
    }
    Some((folder, own))
}

#[test]
fn without_a_torch_or_with_an_old_one_the_answer_says_what_to_do() {
    for (text, words) in [
        (None, ["cannot import torch", "--python"]),
        (Some("__version__ = '1.13.1'"), ["has torch 1.13.1", "2.1 at least"]),
        (Some("raise ImportError('libcuda.so is broken')"), ["libcuda.so is broken", "--python"]),
    ] {
        let Some((_folder, own)) = with_torch(text) else {
            eprintln!("SKIPPED, NOTHING WAS TESTED: there is no Python");
            return;
        };
        let options = OpenOptions { python: None, threads: None, regions: &[] };
        let error = open_with(&RealWorld::new(), "pytorch:cpu", &own, &options).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn without_python_the_answer_says_what_to_do() {
    let python = Some(Path::new("/nowhere/python3"));
    let options = OpenOptions { python, threads: None, regions: &[] };
    let error = open(&RealWorld::new(), "pytorch:cpu", &options).unwrap_err().to_string();
    assert!(error.contains("`/nowhere/python3`") && error.contains("--python"), "{error}");
}

#[test]
fn a_backend_that_is_not_there_is_told_with_those_that_are() {
    if support::torch("pytorch:cpu").is_none() {
        return;
    }
    for name in ["pytorch:xpu:6", "pytorch:npu:0", "pytorch:cuda:31"] {
        let options = OpenOptions { python: None, threads: None, regions: &[] };
        let error = open(&RealWorld::new(), name, &options).unwrap_err().to_string();
        assert!(error.contains("`pytorch:cpu`") || error.contains("torch_npu"), "{error}");
    }
}
