//! One training program on one device, with every value that the host writes drawn from a seed.
#![allow(dead_code, reason = "each user takes its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;
use toprope_cpu::{CpuDevice, Level, Options};
use toprope_model::deepseek_v3::build_train;
use toprope_model::{DeepseekV3Config, TrainingOptions};
use toprope_program::shape::sizes;
use toprope_program::{
    Allocation, Bindings, BufferId, CheckMask, DType, Device, MemoryPlan, PreparedId, Program, Progress,
    Range, Role, Span, StateLayout, Tensor, Ticket, Validated, Value, ValueId, Width, validate,
};

/// Long enough for any step here.
const DEADLINE: Duration = Duration::from_secs(300);

/// A small DeepSeek-V3 with everything on.
pub fn small_config() -> DeepseekV3Config {
    DeepseekV3Config::from_json(
        r#"{"vocab_size": 67, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2,
            "num_attention_heads": 2, "q_lora_rank": 20, "kv_lora_rank": 24, "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8, "v_head_dim": 18, "moe_intermediate_size": 14, "n_routed_experts": 8,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2,
            "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
            "max_position_embeddings": 128}"#,
    )
    .unwrap()
}

/// Its training step.
pub fn small_program(dtype: DType) -> Program {
    let options = TrainingOptions {
        sequence: 96,
        micro_batch_sequences: 3,
        dtype,
        balance_alpha: 0.01,
        ..TrainingOptions::default()
    };
    build_train(&small_config(), &options, "small").unwrap()
}

/// A device of this level with this many threads.
pub fn device(level: Option<Level>, threads: usize) -> CpuDevice {
    CpuDevice::new(Options { level, threads: Some(threads), ..Options::default() }).unwrap()
}

/// A prepared program with its buffers.
pub struct Run<D> {
    pub device: D,
    pub program: Arc<Validated>,
    pub plan: Arc<MemoryPlan>,
    pub prepared: PreparedId,
    pub buffers: [BufferId; 3],
    pub symbols: Vec<usize>,
    pub checks: CheckMask,
}

/// Uniform bits, the same in every run (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

impl<D: Device> Run<D> {
    /// Prepares at the symbols' bounds, with constants and state written.
    pub fn new(mut device: D, program: Program, layout: StateLayout) -> Run<D> {
        let program = Arc::new(validate(program).unwrap_or_else(|defects| panic!("{defects:#?}")));
        let plan = Arc::new(MemoryPlan::new(&program, Width::Native, layout));
        let prepared = device.prepare(program.clone(), plan.clone()).unwrap();
        let current = device.allocate(Allocation::Own(plan.state_bytes)).unwrap();
        let next = match layout {
            StateLayout::Double => device.allocate(Allocation::Own(plan.state_bytes)).unwrap(),
            StateLayout::InPlace => current,
        };
        let work = device.allocate(Allocation::Own(plan.work_bytes)).unwrap();
        let symbols = program.program().bounds();
        let mut run = Run {
            device,
            program,
            plan,
            prepared,
            buffers: [current, next, work],
            symbols,
            checks: CheckMask::all(4096),
        };
        let program = run.program.clone();
        for value in &program.program().values {
            let sizes = sizes(&value.shape, &run.symbols);
            let count = sizes.iter().product();
            match &value.role {
                Role::Constant { content } => run.write(value, content.values(&sizes)),
                Role::State { initial } => {
                    let numbers = initial.draw(1, &value.name, count);
                    run.write(value, numbers.into_iter().map(f64::from).collect());
                }
                _ => {}
            }
        }
        run
    }

    /// Writes the inputs of micro-batch `seed`: random tokens in documents of two thirds of a sequence.
    pub fn feed(&mut self, seed: u64, sequence: usize, vocabulary: usize) {
        let program = self.program.clone();
        for value in program.program().values.iter().filter(|value| value.role == Role::Input) {
            let count: usize = sizes(&value.shape, &self.symbols).iter().product();
            let mut numbers = Numbers(seed ^ value.name.len() as u64);
            let border = sequence * 2 / 3;
            let start =
                |t: usize| if t % sequence < border { t - t % sequence } else { t - t % sequence + border };
            let data = (0..count).map(|t| match value.name.as_str() {
                "positions" => (t - start(t)) as f64,
                "segment_start" => start(t) as f64,
                "rates" => [1e-3, 0.1, 0.05][t % 3],
                _ if value.dtype == DType::I32 => numbers.below(vocabulary) as f64,
                _ => 1.0 / (sequence * 3) as f64,
            });
            self.write(value, data.collect());
        }
    }

    /// Writes a value.
    pub fn write(&mut self, value: &Value, data: Vec<f64>) {
        let id = self.program.program().find(&value.name).unwrap();
        let Some(place) = self.plan.place(id) else { return };
        let tensor = Tensor { dtype: value.dtype, sizes: sizes(&value.shape, &self.symbols), data };
        let buffer = self.buffers[place.region as usize];
        self.device.write(buffer, place.offset_bytes, &tensor.to_bytes(Width::Native)).unwrap();
    }

    /// Queues a span.
    pub fn queue(&mut self, range: Range, from: usize, to: usize, first: bool) -> Ticket {
        let [current, next, work] = self.buffers;
        let checks = self.checks.clone();
        let bindings = Bindings { current, next, work, symbols: self.symbols.clone(), first, checks };
        self.device.run(self.prepared, Span { range, from, to }, &bindings).unwrap()
    }

    /// Runs a span.
    pub fn run(&mut self, range: Range, from: usize, to: usize, first: bool) {
        let ticket = self.queue(range, from, to, first);
        assert_eq!(self.device.wait(ticket, DEADLINE).unwrap(), Progress::Done);
    }

    /// The number of instructions of a range.
    pub fn count(&self, range: Range) -> usize {
        self.program.program().range(range).len()
    }

    /// Runs a whole range.
    pub fn all(&mut self, range: Range, first: bool) {
        self.run(range, 0, self.count(range), first);
    }

    /// Two micro-batches and the update, over small inputs.
    pub fn step(&mut self) {
        self.feed(1, 96, 67);
        self.all(Range::Accumulate, true);
        self.feed(2, 96, 67);
        self.all(Range::Accumulate, false);
        self.all(Range::Update, false);
    }

    /// Makes the next state the current one.
    pub fn flip(&mut self) {
        self.buffers.swap(0, 1);
    }

    /// A stored value.
    pub fn tensor(&mut self, id: ValueId) -> Tensor {
        let program = self.program.clone();
        let value = program.program().value(id);
        let sizes = sizes(&value.shape, &self.symbols);
        let place = self.plan.place(id).unwrap();
        let count: usize = sizes.iter().product();
        let mut bytes = vec![0; count * value.dtype.size_bytes(Width::Native)];
        self.device.read(self.buffers[place.region as usize], place.offset_bytes, &mut bytes).unwrap();
        Tensor::from_bytes(value.dtype, &sizes, Width::Native, &bytes).unwrap()
    }

    /// The stored bytes of every value of these roles, by name.
    pub fn bytes(&mut self, wanted: impl Fn(&Role) -> bool) -> Vec<(String, Vec<u8>)> {
        let program = self.program.clone();
        let mut all = Vec::new();
        for (id, value) in program.program().values_with_ids().filter(|(_, value)| wanted(&value.role)) {
            let Some(place) = self.plan.place(id) else { continue };
            let count: usize = sizes(&value.shape, &self.symbols).iter().product();
            let mut bytes = vec![0; count * value.dtype.size_bytes(Width::Native)];
            self.device.read(self.buffers[place.region as usize], place.offset_bytes, &mut bytes).unwrap();
            all.push((value.name.clone(), bytes));
        }
        all
    }

    /// What a step leaves behind: carried values, outputs and the next state.
    pub fn results(&mut self) -> Vec<(String, Vec<u8>)> {
        self.bytes(|role| matches!(role, Role::Carried | Role::Output | Role::Next { .. }))
    }
}

/// Fails at the first value whose bytes differ.
pub fn assert_same(what: &str, got: &[(String, Vec<u8>)], want: &[(String, Vec<u8>)]) {
    assert_eq!(got.len(), want.len(), "{what}: the values");
    assert!(got.len() > 10, "{what}: nothing to compare");
    for ((name, got), (other, want)) in got.iter().zip(want) {
        assert_eq!(name, other, "{what}");
        assert!(got == want, "{what}: the bits of %{name} differ");
    }
}
