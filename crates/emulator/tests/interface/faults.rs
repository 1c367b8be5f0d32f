//! Faults of the runtime that are switched on: every code, at launch and at synchronisation, once and for good.

use std::fmt::Write;

use crate::library::*;
use crate::{acl, launch, ok, run};

fn codes() -> Vec<i32> {
    let range = |from: i32, to: i32| from..=to;
    let mut codes: Vec<i32> =
        vec![100000, 100001, 100002, 100024, 100026, 100029, 107017, 107019, 107020, 107022, 107023];
    codes.extend([
        107000, 107001, 107002, 107003, 107006, 107007, 200000, 507899, 507900, 507901, 507902, 507903,
        507904,
    ]);
    codes.extend(range(107024, 107036));
    codes.extend([
        207000, 207001, 207003, 207004, 207005, 207006, 207007, 207008, 207015, 207016, 207017, 207018,
    ]);
    codes.extend(range(500000, 500005));
    codes.extend([507000, 507001, 507004, 507006]);
    codes.extend(range(507010, 507018));
    codes.extend(range(507033, 507036));
    codes.extend(range(507042, 507057));
    codes.extend(range(574006, 574009));
    codes
}

/// The rules of one process: the Nth call of Neg fails in the Nth way.
fn all_ways() -> (String, Vec<(i32, bool, bool)>) {
    let (mut rules, mut ways) = (String::from("# every code, in every way\n"), Vec::new());
    for code in codes() {
        for (at_launch, sticky) in [(true, false), (true, true), (false, false), (false, true)] {
            let (at, keeps) =
                (if at_launch { "launch" } else { "synchronise" }, if sticky { "yes" } else { "no" });
            ways.push((code, at_launch, sticky));
            writeln!(rules, "runtime.{code}@op=Neg,call={},at={at},sticky={keeps}", ways.len()).unwrap();
        }
    }
    (rules, ways)
}

#[test]
fn every_code_shows_where_and_as_long_as_it_was_asked_for() {
    assert_eq!(codes().len(), 92);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), all_ways().0).unwrap();
    let (fine, text) = child("faults::in_child", "codes", file.path().to_str().unwrap());
    assert!(fine && text.contains("368 ways"), "{text}");
}

fn neg() -> i32 {
    let (x, _) = floats(&[2], &[1.0, 2.0]);
    launch!("Neg", x, room(&[2]).0)
}

fn every_code() {
    let (_, ways) = all_ways();
    for &(code, at_launch, sticky) in &ways {
        let launched = neg();
        let told = if at_launch {
            assert_eq!(launched, 361001, "{code}");
            assert!(message().contains(&code.to_string()), "{code}: {}", message());
            assert_eq!(acl!("aclrtPeekAtLastError", 0i32), code);
            assert_eq!(acl!("aclrtGetLastError", 0i32), code);
            assert_eq!(acl!("aclrtGetLastError", 0i32), 0, "it was taken");
            code
        } else {
            assert_eq!(launched, 0, "{code}: {}", message());
            let told = acl!("aclrtSynchronizeStream", 0usize);
            assert!(message().contains("aclnnNeg"), "{code}: {}", message());
            told
        };
        assert_eq!(told, code);
        let after = acl!("aclrtSynchronizeStream", 0usize);
        if sticky {
            assert_eq!(after, code, "it must stay");
            let mut address = 0usize;
            assert_eq!(acl!("aclrtMalloc", &mut address as *mut usize, 64usize, 0i32), 507899);
            ok!("aclrtResetDeviceForce", 0i32);
            ok!("aclrtSetDevice", 0i32);
        } else {
            assert_eq!(after, 0, "{code} must pass: {}", message());
        }
    }
    println!("{} ways", ways.len());
}

/// The body of each child process.
#[test]
#[ignore = "run by the other tests in a process of its own"]
fn in_child() {
    begin();
    match std::env::var("CANN_CHILD").unwrap().as_str() {
        "codes" => every_code(),
        "hang" => {
            assert_eq!(neg(), 0);
            assert_eq!(acl!("aclrtSynchronizeStreamWithTimeout", 0usize, 30i32), 507046);
            assert_eq!(
                acl!("aclrtSynchronizeStreamWithTimeout", 0usize, 30i32),
                507046,
                "it goes on hanging"
            );
            // Somebody resets by force: whoever waits is let go.
            let waiter = std::thread::spawn(|| {
                ok!("aclrtSetDevice", 0i32);
                acl!("aclrtSynchronizeStream", 0usize)
            });
            std::thread::sleep(std::time::Duration::from_millis(50));
            ok!("aclrtResetDeviceForce", 0i32);
            assert_ne!(waiter.join().unwrap(), 0);
            ok!("aclrtSetDevice", 0i32);
            assert_eq!(neg(), 0);
            ok!("aclrtSynchronizeStream", 0usize);
        }
        "time limit" => {
            let mut actual = 0u64;
            ok!("aclrtSetOpExecuteTimeOutV2", 50_000u64, &mut actual as *mut u64);
            assert_eq!(neg(), 0);
            assert_eq!(acl!("aclrtSynchronizeStream", 0usize), 507014);
            assert!(message().contains("aclnnNeg"), "{}", message());
        }
        "hang in malloc" => {
            let waiter = std::thread::spawn(|| {
                ok!("aclrtSetDevice", 0i32);
                let mut address = 0usize;
                acl!("aclrtMalloc", &mut address as *mut usize, 64usize, 0i32)
            });
            std::thread::sleep(std::time::Duration::from_millis(80));
            assert!(!waiter.is_finished());
            ok!("aclrtResetDeviceForce", 0i32);
            assert_eq!(waiter.join().unwrap(), 107022);
        }
        "delay" => {
            assert_eq!(neg(), 0);
            let (x, _) = floats(&[2], &[1.0, 2.0]);
            assert_eq!(launch!("Abs", x, room(&[2]).0), 0);
            ok!("aclrtSynchronizeStream", 0usize);
            assert_eq!(launch!("Exp", x, room(&[2]).0), 0);
            assert_eq!(acl!("aclrtSynchronizeStream", 0usize), 507015);
            assert!(message().contains("aclnnExp") && !message().contains("aclnnNeg"), "{}", message());
        }
        "memory" => {
            assert_eq!(neg(), 0);
            assert_eq!(acl!("aclrtSynchronizeStream", 0usize), 507053);
            let (mut bad, mut count) = (vec![0u8; 128 * 4], 0usize);
            ok!("aclrtGetMemUceInfo", 0i32, bad.as_mut_ptr() as usize, 4usize, &mut count as *mut usize);
            assert_eq!(count, 1);
            ok!("aclrtMemUceRepair", 0i32, bad.as_ptr() as usize, count);
            ok!("aclrtGetMemUceInfo", 0i32, bad.as_mut_ptr() as usize, 4usize, &mut count as *mut usize);
            assert_eq!(count, 0);
        }
        "vanish" => {
            assert_eq!(neg(), 0);
            assert_eq!(acl!("aclrtSynchronizeStream", 0usize), 507010);
            assert_eq!(acl!("aclrtResetDeviceForce", 0i32), 207004);
            assert_ne!(acl!("aclrtSetDevice", 0i32), 0);
            // Another device is well.
            ok!("aclrtSetDevice", 1i32);
            assert_eq!(neg(), 0);
            ok!("aclrtSynchronizeStream", 0usize);
        }
        "runtime call" => {
            let mut address = 0usize;
            ok!("aclrtMalloc", &mut address as *mut usize, 64usize, 0i32);
            assert_eq!(acl!("aclrtMalloc", &mut address as *mut usize, 64usize, 0i32), 207001);
            ok!("aclrtMalloc", &mut address as *mut usize, 64usize, 0i32);
        }
        "hot" => {
            // Cool at first; the simulated temperature rises with launches.
            let mut launches = 0;
            while launches < 4000 {
                let (x, _) = floats(&[1], &[1.0]);
                let code = launch!("Neg", x, room(&[1]).0);
                launches += 1;
                if code != 0 {
                    break;
                }
            }
            assert!((1000..4000).contains(&launches), "{launches}");
            println!("hot after {launches}");
        }
        "pace" => {
            let start = std::time::Instant::now();
            let (x, _) = floats(&[25_000], &[1.0; 25_000]);
            let copied = start.elapsed().as_secs_f64();
            let (out, _) = room(&[25_000]);
            let start = std::time::Instant::now();
            run!("Neg", x, out);
            run!("Neg", x, out);
            println!("copied {copied}");
            assert!(copied >= 0.1, "100,000 bytes at 1e6 bytes a second");
            assert!(start.elapsed().as_secs_f64() >= 0.1, "two operators of 50 ms");
        }
        "healthy" => {
            let (x, _) = floats(&[2], &[1.0, 2.0]);
            run!("Neg", x, room(&[2]).0);
        }
        other => panic!("no case {other}"),
    }
}

#[test]
fn faults_come_when_and_where_they_were_asked_for() {
    for (case, defects) in [
        ("healthy", ""),
        ("hang", "runtime.hang@op=Neg,call=1"),
        ("time limit", "runtime.aicore_exception@op=aclnnNeg,at=never"),
        ("hang in malloc", "runtime.hang@op=aclrtMalloc,call=1"),
        ("delay", "runtime.aicore_exception@op=Neg,delay=2"),
        ("memory", "runtime.device_mem_error@op=Neg"),
        ("vanish", "runtime.device_lost@op=Neg,device=0"),
        ("runtime call", "runtime.memory_allocation@op=aclrtMalloc,call=2"),
        ("hot", "runtime.aicore_exception@op=Neg,temperature=70,at=launch"),
    ] {
        let (fine, text) = child("faults::in_child", case, defects);
        assert!(fine, "{case}: {text}");
    }
}

#[test]
fn wrong_settings_are_refused_with_their_mend() {
    for (defects, told) in [
        (
            "matmul.fp16_acumulate",
            "no defect is called matmul.fp16_acumulate; is matmul.fp16_accumulate meant?",
        ),
        ("runtime.hang@cal=3", "a rule has no key cal; is call meant?"),
        ("runtime.hang@call=soon", "call=soon is not understood"),
        ("runtime.hang@at=noon", "launch, synchronise or never is needed"),
    ] {
        let (fine, text) = child("faults::in_child", "healthy", defects);
        assert!(!fine && text.contains(told), "{defects}: {text}");
    }
    for (name, value) in [("CANN_EMULATOR_DEVICES", "two"), ("CANN_EMULATOR_MEMORY", "16 GiB")] {
        let (fine, text) = child_with("faults::in_child", "healthy", &[(name, value)]);
        assert!(!fine && text.contains(&format!("{name} is \"{value}\": a number is needed")), "{text}");
    }
    let list = [("CANN_EMULATOR_CALLS", "/no/such/folder/calls")];
    let (fine, text) = child_with("faults::in_child", "healthy", &list);
    assert!(!fine && text.contains("CANN_EMULATOR_CALLS: /no/such/folder/calls: No such file"), "{text}");
    let (fine, text) = child("faults::in_child", "healthy", "list");
    assert!(
        fine && text.contains("matmul.fp16_accumulate") && text.contains("runtime.lost_heartbeat"),
        "{text}"
    );
}

#[test]
fn latency_and_bandwidth_are_settings() {
    let pace = [("CANN_EMULATOR_LATENCY_US", "50000"), ("CANN_EMULATOR_BANDWIDTH", "1e6")];
    let (fine, text) = child_with("faults::in_child", "pace", &pace);
    assert!(fine, "{text}");
}
