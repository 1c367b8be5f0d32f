//! What a person sees while a run goes: a bar on a terminal, plain lines in a pipe.

use crate::memory;
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::rc::Rc;
use std::time::Duration;
use toprope_train::trainer::{Observer, StepReport};

/// Shows steps.
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    /// FLOPs of a step over the measured peak per second: MFU is this over the step's seconds.
    ideal_seconds: f64,
    /// The most so far, as last asked.
    memory_bytes: u64,
    recent: Vec<f64>,
    next_line: u64,
}

/// A step's time is shown over this many steps.
const WINDOW: usize = 20;

impl Progress {
    /// Begins to show a run of `steps`, of which `done` are done.
    pub fn new(steps: u64, done: u64, ideal_seconds: f64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            let style = "{wide_bar} {pos}/{len}  {msg}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_position(done);
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Progress {
            bar,
            steps,
            ideal_seconds,
            memory_bytes: memory::peak_bytes(),
            recent: Vec::new(),
            next_line: done + 1,
        }
    }

    /// Prints a line without disturbing the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// The median of the last steps' seconds.
    fn step_seconds(&self) -> f64 {
        let mut sorted = self.recent.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// The same progress for the training loop and for the guard's news.
#[derive(Clone)]
pub struct Shared(pub Rc<RefCell<Progress>>);

impl Observer for Shared {
    fn step(&mut self, report: &StepReport) {
        self.0.borrow_mut().step(report);
    }

    fn checkpoint(&mut self, step: u64) {
        self.0.borrow_mut().checkpoint(step);
    }

    fn evaluated(&mut self, step: u64, bits_per_byte: f64) {
        self.0.borrow_mut().evaluated(step, bits_per_byte);
    }

    fn warning(&mut self, text: &str) {
        self.0.borrow_mut().warning(text);
    }
}

impl Observer for Progress {
    fn step(&mut self, report: &StepReport) {
        if self.recent.len() == WINDOW {
            self.recent.remove(0);
        }
        self.recent.push(report.seconds);
        let shown = self.bar.is_none() && report.step >= self.next_line;
        if shown || report.step % WINDOW as u64 == 1 {
            self.memory_bytes = memory::peak_bytes();
        }
        let seconds = self.step_seconds();
        let left = (self.steps - report.step.min(self.steps)) as f64 * seconds;
        let rate = report.tokens as f64 / seconds;
        let message = format!(
            "loss {:.4}  {:.0} tok/s  MFU {:.0} %  {}",
            report.loss,
            rate,
            100.0 * self.ideal_seconds / seconds,
            bytes(self.memory_bytes)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(report.step);
                bar.set_message(message);
            }
            None if report.step >= self.next_line || report.step == self.steps => {
                eprintln!("step {:>6}/{}  {message}  {} left", report.step, self.steps, duration(left));
                // About fifty lines, however long the run.
                self.next_line = report.step + (self.steps / 50).max(1);
            }
            None => {}
        }
    }

    fn checkpoint(&mut self, step: u64) {
        if self.bar.is_none() {
            eprintln!("checkpoint of step {step} is durable");
        }
    }

    fn evaluated(&mut self, step: u64, bits_per_byte: f64) {
        self.line(&format!("step {step:>6}  held out: {bits_per_byte:.4} bits per byte"));
    }

    fn warning(&mut self, text: &str) {
        self.line(&format!("warning: {text}"));
    }
}

/// Shows how much of something is done: a bar on a terminal, about ten lines in a pipe.
pub struct Counted {
    bar: Option<ProgressBar>,
    what: &'static str,
    all: u64,
    next_line: Cell<u64>,
}

impl Counted {
    /// Begins to show so many of `what`.
    pub fn new(what: &'static str, all: u64) -> Counted {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(all);
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {eta} left") {
                bar.set_style(style);
            }
            bar
        });
        Counted { bar, what, all, next_line: Cell::new(all / 10) }
    }

    /// Says how many are done, and what came of them so far.
    pub fn set(&self, done: u64, message: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(message.to_string());
                bar.set_position(done);
            }
            None if done >= self.next_line.get() && done < self.all => {
                eprintln!("{done}/{} {}  {message}", self.all, self.what);
                self.next_line.set(done + self.all / 10);
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes with a unit that fits.
pub fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        c if c < 1024.0 => format!("{c:.0} B"),
        c if c < 1024.0 * 1024.0 => format!("{:.1} KiB", c / 1024.0),
        c if c < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", c / 1024.0 / 1024.0),
        c => format!("{:.2} GiB", c / 1024.0 / 1024.0 / 1024.0),
    }
}

/// Seconds as people say them.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "?".into(),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
