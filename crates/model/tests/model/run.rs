//! Runs a program on the reference device, values by name.

use crate::support::Batch;
use std::sync::Arc;
use std::time::Duration;
use toprope_model::DeepseekV3Config;
use toprope_program::{
    Allocation, Bindings, BufferId, CheckMask, Device, MemoryPlan, PreparedId, Program, Range, Region, Role,
    Span, StateLayout, Tensor, Width, validate,
};
use toprope_reference::{Options, ReferenceDevice};

/// A program with its buffers on the reference device.
pub struct Run {
    device: ReferenceDevice,
    prepared: PreparedId,
    plan: Arc<MemoryPlan>,
    program: Program,
    buffers: [BufferId; 3],
    symbols: Vec<usize>,
    first: bool,
}

impl Run {
    /// Prepares a program with its constants written and its state drawn from seed 1.
    pub fn new(program: Program, width: Width, symbols: Vec<usize>) -> Run {
        let validated = validate(program.clone()).unwrap_or_else(|defects| panic!("{defects:#?}"));
        let plan = Arc::new(MemoryPlan::new(&validated, width, StateLayout::Double));
        let mut device = ReferenceDevice::new(Options { width, ..Default::default() });
        let own = |device: &mut ReferenceDevice, bytes| device.allocate(Allocation::Own(bytes)).unwrap();
        let buffers = [
            own(&mut device, plan.state_bytes),
            own(&mut device, plan.state_bytes),
            own(&mut device, plan.work_bytes),
        ];
        let prepared = device.prepare(Arc::new(validated), plan.clone()).unwrap();
        let mut run = Run { device, prepared, plan, program, buffers, symbols, first: true };
        let values: Vec<_> = run.program.values.clone();
        for value in values {
            let sizes = toprope_program::shape::sizes(&value.shape, &run.symbols);
            let count = sizes.iter().product();
            let data: Vec<f64> = match &value.role {
                Role::Constant { content } => content.values(&sizes),
                Role::State { initial } => {
                    initial.draw(1, &value.name, count).into_iter().map(f64::from).collect()
                }
                _ => continue,
            };
            run.write(&value.name, &data);
        }
        run
    }

    /// The sizes of a value.
    pub fn sizes(&self, name: &str) -> Vec<usize> {
        let id = self.program.find(name).unwrap_or_else(|| panic!("no value %{name}"));
        toprope_program::shape::sizes(&self.program.value(id).shape, &self.symbols)
    }

    /// Writes a value.
    pub fn write(&mut self, name: &str, data: &[f64]) {
        let (buffer, offset, tensor) = self.place(name);
        assert_eq!(data.len(), tensor.data.len(), "{name}");
        let bytes = Tensor { data: data.to_vec(), ..tensor }.to_bytes(self.plan.width);
        self.device.write(buffer, offset, &bytes).unwrap();
    }

    /// Writes the inputs that the program has.
    pub fn write_batch(&mut self, batch: &Batch) {
        for (name, data) in batch {
            if self.program.find(name).is_some() {
                self.write(name, data);
            }
        }
    }

    /// Binds the symbols anew, within their bounds.
    pub fn bind(&mut self, symbols: Vec<usize>) {
        self.symbols = symbols;
    }

    /// Begins a new step without an update.
    pub fn begin(&mut self) {
        self.first = true;
    }

    /// Reads a value.
    pub fn read(&mut self, name: &str) -> Vec<f64> {
        let (buffer, offset, tensor) = self.place(name);
        let mut bytes = tensor.to_bytes(self.plan.width);
        self.device.read(buffer, offset, &mut bytes).unwrap();
        Tensor::from_bytes(tensor.dtype, &tensor.sizes, self.plan.width, &bytes).unwrap().data
    }

    /// Runs a range. The first `accumulate` after an `update` begins a new step.
    pub fn run(&mut self, range: Range) {
        let span = Span { range, from: 0, to: self.program.range(range).len() };
        let [current, next, work] = self.buffers;
        let symbols = self.symbols.clone();
        let bindings =
            Bindings { current, next, work, symbols, first: self.first, checks: CheckMask::default() };
        let ticket = self.device.run(self.prepared, span, &bindings).unwrap();
        self.device.wait(ticket, Duration::from_secs(60)).unwrap();
        self.first = range == Range::Update;
        if range == Range::Update {
            // Committing is a flip: every state value of a training step has a next half.
            self.buffers.swap(0, 1);
        }
    }

    fn place(&self, name: &str) -> (BufferId, usize, Tensor) {
        let id = self.program.find(name).unwrap_or_else(|| panic!("no value %{name}"));
        let location = self.plan.place(id).unwrap_or_else(|| panic!("%{name} has no place"));
        let buffer = match location.region {
            Region::Current => self.buffers[0],
            Region::Next => self.buffers[1],
            Region::Work => self.buffers[2],
        };
        let dtype = self.program.value(id).dtype;
        (buffer, location.offset_bytes, Tensor::zeros(dtype, &self.sizes(name)))
    }
}

/// Names of the carried gradients' parameters.
pub fn gradients(config: &DeepseekV3Config) -> Vec<String> {
    let trained = toprope_model::parameters::parameters(config).into_iter().filter(|p| p.is_trained());
    trained.map(|parameter| parameter.name).collect()
}
