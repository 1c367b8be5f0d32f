//! `--metrics ADDRESS`: the run's figures for Prometheus, in its text format 0.0.4.
//!
//! The run writes into [`Metrics`], which costs it a few atomic additions a step. A thread of its own answers requests:
//! a few connections at once, each for a few seconds, each request of a few kilobytes; whatever comes in, the run
//! does not notice.

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE as CONTENT_TYPE_HEADER, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::prometheus_text::{CONTENT_TYPE, encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use toprope_guard::decide::{DeviceIndex, Entry};
use toprope_program::FaultClass;
use toprope_train::trainer::{Observer, StepReport};
use toprope_world::World;

/// Connections at once; more are closed.
const CONNECTIONS_MAX: usize = 16;
/// A connection's whole life.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// How long a request's head may take to come in.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// The longest head of a request; the least that hyper takes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Steps over which the clean speed is taken.
const WINDOW: usize = 1_001;

/// What a device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceState {
    /// Runs steps.
    Serving,
    /// Must not be used until it passes a test.
    Quarantined,
    /// In the list, and not in use.
    Reserve,
}

impl DeviceState {
    const ALL: [DeviceState; 3] = [DeviceState::Serving, DeviceState::Quarantined, DeviceState::Reserve];

    fn name(self) -> &'static str {
        match self {
            DeviceState::Serving => "serving",
            DeviceState::Quarantined => "quarantined",
            DeviceState::Reserve => "reserve",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    class: String,
    injected: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    device: String,
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: String,
    run: String,
}

type Number = Gauge<f64, AtomicU64>;

/// The run's figures, shared by the run, which writes, and the server, which reads.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    steps: Counter,
    step: Gauge,
    tokens: Counter,
    loss: Number,
    gradient_norm: Number,
    learning_rate: Number,
    step_seconds: Histogram,
    faults: Family<FaultLabels, Counter>,
    lost_seconds: Counter<f64, AtomicU64>,
    steps_redone: Counter,
    goodput: Number,
    devices: Family<DeviceLabels, Gauge>,
    checkpoint_step: Gauge,
    bits_per_byte: Number,
    pace: Mutex<Pace>,
}

/// What goodput follows from, while the run goes.
#[derive(Debug, Default)]
struct Pace {
    recent: VecDeque<f64>,
    steps: u64,
}

impl Metrics {
    /// Figures of a run, named by its folder; all are there from the start, at 0.
    pub fn new(run: &str) -> Metrics {
        let mut registry = Registry::with_prefix("toprope");
        let metrics = Metrics {
            steps: Counter::default(),
            step: Gauge::default(),
            tokens: Counter::default(),
            loss: Number::default(),
            gradient_norm: Number::default(),
            learning_rate: Number::default(),
            step_seconds: Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
            ]),
            faults: Family::default(),
            lost_seconds: Counter::default(),
            steps_redone: Counter::default(),
            goodput: Number::default(),
            devices: Family::default(),
            checkpoint_step: Gauge::default(),
            bits_per_byte: Number::default(),
            pace: Mutex::default(),
            registry: Registry::default(),
        };
        for class in FaultClass::ALL {
            for injected in [false, true] {
                // An alert on a rate needs the series before its first fault.
                let _ = metrics.faults.get_or_create(&fault_labels(class, injected));
            }
        }
        let build = Family::<BuildLabels, Gauge>::default();
        let labels = BuildLabels { version: env!("CARGO_PKG_VERSION").to_owned(), run: run.to_owned() };
        build.get_or_create(&labels).set(1);
        registry.register("build_info", "The program and the run; always 1", build);
        registry.register("steps", "Steps that this process committed", metrics.steps.clone());
        registry.register("step", "Committed steps of the whole run", metrics.step.clone());
        registry.register(
            "tokens",
            "Tokens of the steps that this process committed",
            metrics.tokens.clone(),
        );
        registry.register("loss", "Loss of the last committed step, in nats a token", metrics.loss.clone());
        registry.register(
            "gradient_norm",
            "Norm of the last committed step's gradients, before clipping",
            metrics.gradient_norm.clone(),
        );
        registry.register(
            "learning_rate",
            "Learning rate of the last committed step",
            metrics.learning_rate.clone(),
        );
        registry.register("step_seconds", "Wall time of committed steps", metrics.step_seconds.clone());
        registry.register(
            "faults",
            "Faults by class, and whether they were injected on purpose",
            metrics.faults.clone(),
        );
        registry.register(
            "lost_seconds",
            "Time from faults to the commits that ended them",
            metrics.lost_seconds.clone(),
        );
        registry.register(
            "steps_redone",
            "Executions of steps beyond the one that counts",
            metrics.steps_redone.clone(),
        );
        registry.register(
            "goodput_ratio",
            "Time of this process's committed steps at their median, over wall time",
            metrics.goodput.clone(),
        );
        registry.register(
            "device_state",
            "1 for the state that a device is in, 0 for the others",
            metrics.devices.clone(),
        );
        registry.register(
            "checkpoint_step",
            "Committed steps in the newest durable checkpoint",
            metrics.checkpoint_step.clone(),
        );
        registry.register(
            "held_out_bits_per_byte",
            "Held-out loss when it was last measured",
            metrics.bits_per_byte.clone(),
        );
        Metrics { registry, ..metrics }
    }

    /// A step was committed, so long after the run began in this process.
    pub fn step(&self, report: &StepReport, elapsed: Duration) {
        self.steps.inc();
        self.step.set(whole(report.step));
        self.tokens.inc_by(report.tokens);
        self.loss.set(report.loss);
        self.gradient_norm.set(report.gradient_norm);
        self.learning_rate.set(report.learning_rate);
        self.step_seconds.observe(report.seconds);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if pace.recent.len() == WINDOW {
            pace.recent.pop_front();
        }
        pace.recent.push_back(report.seconds);
        pace.steps += 1;
        // Every so often: the order of a thousand numbers does not change with one.
        if pace.steps.is_multiple_of(16) || pace.steps < 16 {
            let mut sorted: Vec<f64> = pace.recent.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            let median = sorted[sorted.len() / 2];
            self.goodput.set((median * pace.steps as f64 / elapsed.as_secs_f64().max(1e-9)).min(1.0));
        }
    }

    #[allow(dead_code, reason = "called by the supervisor's recorder, which lands after this")]
    /// Takes in what the guard records; devices by name, in the order of their indices.
    pub fn entry(&self, entry: &Entry, devices: &[String], injected: bool) {
        let name = |device: DeviceIndex| devices.get(usize::from(device.0)).map_or("unknown", String::as_str);
        match entry {
            Entry::Fault { kind, .. } => {
                self.faults.get_or_create(&fault_labels(kind.class(), injected)).inc();
            }
            Entry::WorkerActive { device, .. } => self.device(name(*device), DeviceState::Serving),
            Entry::Quarantined { device, .. } => self.device(name(*device), DeviceState::Quarantined),
            Entry::Retested { device, passed: true, .. } => self.device(name(*device), DeviceState::Reserve),
            Entry::FailedOver { from, to, .. } | Entry::FailedBack { from, to, .. } => {
                let quarantined = device_labels(name(*from), DeviceState::Quarantined);
                if self.devices.get_or_create(&quarantined).get() == 0 {
                    self.device(name(*from), DeviceState::Reserve);
                }
                self.device(name(*to), DeviceState::Serving);
            }
            _ => {}
        }
    }

    #[allow(dead_code, reason = "as `entry`")]
    /// A fault is over.
    pub fn recovered(&self, seconds: f64, steps_redone: u64) {
        if seconds.is_finite() && seconds > 0.0 {
            self.lost_seconds.inc_by(seconds);
        }
        self.steps_redone.inc_by(steps_redone);
    }

    fn device(&self, device: &str, now: DeviceState) {
        for state in DeviceState::ALL {
            self.devices.get_or_create(&device_labels(device, state)).set(i64::from(state == now));
        }
    }

    /// A checkpoint is durable.
    pub fn checkpoint(&self, step: u64) {
        self.checkpoint_step.set(whole(step));
    }

    /// The held-out loss was measured.
    pub fn evaluated(&self, bits_per_byte: f64) {
        self.bits_per_byte.set(bits_per_byte);
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn fault_labels(class: FaultClass, injected: bool) -> FaultLabels {
    FaultLabels { class: class.name().to_owned(), injected: injected.to_string() }
}

fn device_labels(device: &str, state: DeviceState) -> DeviceLabels {
    DeviceLabels { device: device.to_owned(), state: state.name().to_owned() }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Why no metrics are given.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Another process answers there.
    #[error(
        "--metrics {address}: the address is in use\nhint: choose another port, or 0 for any that is free"
    )]
    InUse {
        /// The address.
        address: String,
    },
    /// It is no address of this machine.
    #[error(
        "--metrics {address}: {source}\nhint: give an address of this machine and a port, as in 127.0.0.1:9400"
    )]
    Address {
        /// The address.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The thread or its runtime could not be started.
    #[error("--metrics {address}: cannot start to answer: {source}")]
    Start {
        /// The address.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// Answers requests until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Begins to answer at an address, `host:port`; port 0 takes any that is free.
    ///
    /// # Errors
    /// The address is in use, or none of this machine.
    pub fn start(address: &str, metrics: Arc<Metrics>) -> Result<Server, MetricsError> {
        let listener = TcpListener::bind(address).map_err(|source| {
            let address = address.to_owned();
            match source.kind() {
                io::ErrorKind::AddrInUse => MetricsError::InUse { address },
                _ => MetricsError::Address { address, source },
            }
        })?;
        let cannot = |source| MetricsError::Start { address: address.to_owned(), source };
        let at = listener.local_addr().map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(cannot)?;
        let (stop, stopped) = oneshot::channel();
        let answer = move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = listen(listener, metrics) => {}
                    _ = stopped => {}
                }
            });
            // What is still being answered is dropped with the runtime.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(answer).map_err(cannot)?;
        Ok(Server { address: at, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(listener: tokio::net::TcpListener, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: they come back when connections end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .max_buf_size(HEAD_BYTES_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that says nonsense, or goes away, is no matter of ours.
            let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<String> {
    let status = |status: StatusCode, text: &str| {
        let mut response = Response::new(format!("{text}\n"));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = status(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if request.uri().path() != "/metrics" {
        return status(StatusCode::NOT_FOUND, "the figures are at /metrics");
    }
    match metrics.text() {
        Ok(text) => {
            let mut response = Response::new(text);
            response.headers_mut().insert(CONTENT_TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
            response
        }
        Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR, "the figures cannot be written"),
    }
}

/// An observer that tells the metrics, too.
pub struct Watched<'a> {
    /// Who is told first.
    pub observer: &'a mut dyn Observer,
    /// The figures, where somebody asked for them.
    pub metrics: Option<Arc<Metrics>>,
    /// The clock.
    pub world: &'a dyn World,
    /// When the run began in this process, by the monotonic clock.
    pub began: Duration,
}

impl Observer for Watched<'_> {
    fn step(&mut self, report: &StepReport) {
        self.observer.step(report);
        if let Some(metrics) = &self.metrics {
            metrics.step(report, self.world.clock().monotonic().saturating_sub(self.began));
        }
    }

    fn checkpoint(&mut self, step: u64) {
        self.observer.checkpoint(step);
        if let Some(metrics) = &self.metrics {
            metrics.checkpoint(step);
        }
    }

    fn evaluated(&mut self, step: u64, bits_per_byte: f64) {
        self.observer.evaluated(step, bits_per_byte);
        if let Some(metrics) = &self.metrics {
            metrics.evaluated(bits_per_byte);
        }
    }

    fn warning(&mut self, text: &str) {
        self.observer.warning(text);
    }
}

#[cfg(test)]
mod tests;
