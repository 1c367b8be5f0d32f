//! A program on the device, with values by name.

use std::sync::Arc;
use std::time::Duration;
use toprope_program::shape::sizes;
use toprope_program::{
    Allocation, Bindings, CheckMask, Device, MemoryPlan, PreparedId, Program, Progress, ProgressPlace, Range,
    Region, Role, Span, StateLayout, Tensor, Validated, ValueId, Width, validate,
};
use toprope_reference::{Options, ReferenceDevice};

pub struct Session {
    pub device: ReferenceDevice,
    pub program: Arc<Validated>,
    pub plan: Arc<MemoryPlan>,
    pub prepared: PreparedId,
    pub bindings: Bindings,
    pub progress: ProgressPlace,
}

impl Session {
    pub fn new(program: Program, width: Width) -> Session {
        let symbols = program.bounds();
        Session::bound(program, width, symbols)
    }

    /// With a value for each symbol. Buffers begin full of NaN, so that what is read before it is written shows.
    pub fn bound(program: Program, width: Width, symbols: Vec<usize>) -> Session {
        let printed = toprope_program::text::print(&program);
        let program = validate(program).unwrap_or_else(|defects| panic!("{defects:#?}\n{printed}"));
        let plan = Arc::new(MemoryPlan::new(&program, width, StateLayout::Double));
        let (program, progress) = (Arc::new(program), ProgressPlace::default());
        let mut device = ReferenceDevice::new(Options { width, progress: progress.clone() });
        let prepared = device.prepare(Arc::clone(&program), Arc::clone(&plan)).unwrap();
        let [current, next, work] = [plan.state_bytes, plan.state_bytes, plan.work_bytes].map(|bytes| {
            let buffer = device.allocate(Allocation::Own(bytes)).unwrap();
            device.write(buffer, 0, &vec![0xff; bytes]).unwrap();
            buffer
        });
        let bindings = Bindings { current, next, work, symbols, first: true, checks: CheckMask::default() };
        let mut session = Session { device, program, plan, prepared, bindings, progress };
        for value in session.program.program().values.clone() {
            if let Role::Constant { content } = &value.role {
                let sizes = sizes(&value.shape, &[]);
                let tensor = Tensor { dtype: value.dtype, data: content.values(&sizes), sizes };
                session.write(&value.name, &tensor);
            }
        }
        session
    }

    fn find(&self, name: &str) -> (ValueId, Vec<usize>) {
        let program = self.program.program();
        let id = program.find(name).unwrap_or_else(|| panic!("%{name} is not there"));
        (id, sizes(&program.value(id).shape, &self.bindings.symbols))
    }

    pub fn write(&mut self, name: &str, tensor: &Tensor) {
        let (id, sizes) = self.find(name);
        assert_eq!(
            (tensor.dtype, &tensor.sizes),
            (self.program.program().value(id).dtype, &sizes),
            "%{name}"
        );
        let place = self.plan.place(id).unwrap();
        let buffer = self.buffer(place.region);
        self.device.write(buffer, place.offset_bytes, &tensor.to_bytes(self.plan.width)).unwrap();
    }

    pub fn read(&mut self, name: &str) -> Tensor {
        let (id, sizes) = self.find(name);
        let place = self.plan.place(id).unwrap();
        let dtype = self.program.program().value(id).dtype;
        let count: usize = sizes.iter().product();
        let mut bytes = vec![0; count * dtype.size_bytes(self.plan.width)];
        let buffer = self.buffer(place.region);
        self.device.read(buffer, place.offset_bytes, &mut bytes).unwrap();
        Tensor::from_bytes(dtype, &sizes, self.plan.width, &bytes).unwrap()
    }

    pub fn run(&mut self, range: Range) {
        let to = self.program.program().range(range).len();
        self.run_span(Span { range, from: 0, to });
    }

    pub fn run_span(&mut self, span: Span) {
        let ticket = self.device.run(self.prepared, span, &self.bindings).unwrap();
        assert_eq!(self.device.wait(ticket, Duration::ZERO).unwrap(), Progress::Done);
    }

    fn buffer(&self, region: Region) -> toprope_program::BufferId {
        match region {
            Region::Current => self.bindings.current,
            Region::Next => self.bindings.next,
            Region::Work => self.bindings.work,
        }
    }
}
