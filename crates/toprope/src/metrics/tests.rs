use super::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use toprope_guard::decide::{Generation, Rank, Worker};
use toprope_program::FaultKind;

fn report(step: u64, seconds: f64) -> StepReport {
    StepReport {
        step,
        loss: 2.5,
        parts: Vec::new(),
        gradient_norm: 1.5,
        learning_rate: 0.001,
        tokens: 64,
        seconds,
    }
}

fn names() -> Vec<String> {
    vec!["cpu \"0\"\n".to_owned(), "reference".to_owned()]
}

fn fault(kind: FaultKind) -> Entry {
    let (device, rank, action) = (DeviceIndex(0), Rank(0), "retry".to_owned());
    Entry::Fault { kind, device, rank, step: 3, place: None, action }
}

fn served() -> (Server, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new("0123"));
    (Server::start("127.0.0.1:0", metrics.clone()).unwrap(), metrics)
}

/// What comes back for these bytes, until the server closes.
fn send(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    // A server that has refused already may have closed its end.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(server: &Server) -> String {
    send(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// The value of a series, by its name with labels.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in:\n{text}")).parse().unwrap()
}

#[test]
fn the_figures_are_served_in_the_text_format() {
    let (server, metrics) = served();
    metrics.step(&report(7, 0.2), Duration::from_secs(1));
    metrics.step(&report(8, 0.2), Duration::from_secs(1));
    metrics.entry(&fault(FaultKind::Hang { waited_ms: 1000 }), &names(), false);
    metrics.entry(&fault(FaultKind::NonFinite { value: "loss".into() }), &names(), true);
    metrics.recovered(0.5, 1);
    let (from, to, rank) = (DeviceIndex(0), DeviceIndex(1), Rank(0));
    let worker = Worker { rank, generation: Generation(1) };
    metrics.entry(&Entry::WorkerActive { worker, device: from, standby: false }, &names(), false);
    metrics.entry(&Entry::Quarantined { device: from, reason: "again".into() }, &names(), false);
    metrics.entry(&Entry::FailedOver { rank, from, to }, &names(), false);
    metrics.checkpoint(8);
    metrics.evaluated(1.25);
    let text = get(&server);
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    for (series, expected) in [
        ("toprope_steps_total", 2.0),
        ("toprope_step", 8.0),
        ("toprope_tokens_total", 128.0),
        ("toprope_loss", 2.5),
        ("toprope_goodput_ratio", 0.4),
        ("toprope_step_seconds_count", 2.0),
        ("toprope_step_seconds_bucket{le=\"0.1\"}", 0.0),
        ("toprope_step_seconds_bucket{le=\"0.25\"}", 2.0),
        ("toprope_step_seconds_bucket{le=\"+Inf\"}", 2.0),
        ("toprope_faults_total{class=\"hang\",injected=\"false\"}", 1.0),
        ("toprope_faults_total{class=\"non_finite\",injected=\"true\"}", 1.0),
        ("toprope_faults_total{class=\"lost\",injected=\"false\"}", 0.0),
        ("toprope_lost_seconds_total", 0.5),
        ("toprope_steps_redone_total", 1.0),
        ("toprope_device_state{device=\"cpu \\\"0\\\"\\n\",state=\"quarantined\"}", 1.0),
        ("toprope_device_state{device=\"cpu \\\"0\\\"\\n\",state=\"serving\"}", 0.0),
        ("toprope_device_state{device=\"reference\",state=\"serving\"}", 1.0),
        ("toprope_checkpoint_step", 8.0),
        ("toprope_held_out_bits_per_byte", 1.25),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
}

#[test]
fn each_line_is_a_comment_or_a_series_and_each_series_is_described() {
    let (server, _metrics) = served();
    let text = get(&server);
    let body = text.split_once("\r\n\r\n").unwrap().1;
    let mut described = Vec::new();
    for line in body.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ") {
            described.push(name.split(' ').next().unwrap().to_owned());
        } else if !line.starts_with("# HELP ") {
            let (series, number) = line.rsplit_once(' ').unwrap();
            number.parse::<f64>().unwrap();
            let name = series.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            assert!(described.iter().any(|known| known == name || Some(known.as_str()) == base), "{line}");
            assert!(name.starts_with("toprope_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        }
    }
    assert!(described.len() > 12, "{described:?}");
}

#[test]
fn nonsense_is_refused_and_the_next_request_is_answered() {
    let (server, _metrics) = served();
    let long = [b"GET /metrics HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 200_000], b"\r\n\r\n".to_vec()].concat();
    let cases: [(&[u8], &str); 6] = [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "400"),
        (b"GET\r\n\r\n", "400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", "400"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "405"),
        (&long, "431"),
    ];
    for (request, status) in cases {
        let answer = send(&server, request);
        let first = answer.lines().next().unwrap_or_default();
        // A server may also hang up on what is no HTTP at all; it must not answer it as if it were.
        assert!(
            first.contains(status) || first.is_empty(),
            "{:?}: {answer}",
            &request[..20.min(request.len())]
        );
        assert!(get(&server).starts_with("HTTP/1.1 200 OK"));
    }
    // Clients that connect and say nothing take the places that there are, and no more.
    let silent: Vec<TcpStream> =
        (0..CONNECTIONS_MAX).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    drop(silent);
    drop(server);
}

#[test]
fn an_address_in_use_or_of_nobody_is_one_clear_error() {
    let (server, metrics) = served();
    let taken = server.address().to_string();
    let error = Server::start(&taken, metrics.clone()).unwrap_err().to_string();
    assert!(error.contains(&taken) && error.contains("in use") && error.contains("hint:"), "{error}");
    for address in ["nonsense", "127.0.0.1", "127.0.0.1:99999", "192.0.2.1:1"] {
        let error = Server::start(address, metrics.clone()).unwrap_err().to_string();
        assert!(error.contains(address) && error.contains("hint:"), "{error}");
    }
    // Once it is dropped, the address is free again.
    drop(server);
    drop(Server::start(&taken, metrics).unwrap());
}

#[test]
fn goodput_falls_with_time_that_no_step_took() {
    let metrics = Metrics::new("r");
    for step in 0..32 {
        metrics.step(&report(step + 1, 0.1), Duration::from_secs_f64(0.1 * (step + 1) as f64));
    }
    assert!((metrics.goodput.get() - 1.0).abs() < 1e-9);
    // A step that a fault made ten times as long, twice.
    for step in 32..48 {
        metrics.step(&report(step + 1, 0.1), Duration::from_secs_f64(0.1 * (step + 1) as f64 + 1.6));
    }
    assert!((metrics.goodput.get() - 4.8 / 6.4).abs() < 1e-9, "{}", metrics.goodput.get());
}
