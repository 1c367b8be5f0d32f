//! A small training step.

use std::sync::Arc;
use toprope_cpu::{CpuDevice, Options};
use toprope_guard::inject::{Handle, Injected, NoHooks, OwnFirings, expand, parse};
use toprope_model::{DeepseekV3Config, TrainingOptions, deepseek_v3};
use toprope_program::check::{CheckLevel, CheckPlan, insert};
use toprope_program::shape::{elements, sizes};
use toprope_program::{
    CheckMask, DType, Fault, Program, Range, Role, Session, StateLayout, Validated, Width, validate,
};

/// Two layers of a dense model.
pub fn program() -> Program {
    let config = DeepseekV3Config::from_json(
        r#"{"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
            "v_head_dim": 8, "max_position_embeddings": 16}"#,
    )
    .unwrap();
    let options =
        TrainingOptions { sequence: 16, micro_batch_sequences: 2, dtype: DType::Bf16, ..Default::default() };
    deepseek_v3::build_train(&config, &options, "faults").unwrap()
}

/// The step on a device with faults.
pub struct Step {
    pub device: Injected,
    pub session: Session,
    pub handle: Handle,
    pub program: Arc<Validated>,
}

impl Step {
    /// With this schedule, and checksums of products where asked for.
    pub fn new(text: &str, checked: bool) -> Step {
        let mut program = program();
        if checked {
            insert(&mut program, &CheckPlan { level: CheckLevel::Full });
        }
        let program = Arc::new(validate(program).unwrap());
        let faults = expand(&parse(text).unwrap(), program.program(), 100).unwrap();
        let handle = Handle::new(faults.clone(), Arc::new(OwnFirings::new(faults.len())));
        let cpu = CpuDevice::new(Options { threads: Some(1), ..Options::default() }).unwrap();
        let mut device = Injected::new(Box::new(cpu), handle.clone(), Box::new(NoHooks));
        let mut session =
            Session::open(&mut device, program.clone(), Width::Native, StateLayout::Double).unwrap();
        session.set_checks(CheckMask::all(256));
        let mut step = Step { device, session, handle, program };
        step.fill();
        step
    }

    fn fill(&mut self) {
        let program = self.program.program();
        for value in &program.values {
            let count = elements(&sizes(&value.shape, &program.bounds()));
            match &value.role {
                Role::State { initial } if value.dtype.is_float() => {
                    let numbers = initial.draw(1, &value.name, count);
                    self.session.write_f32(&mut self.device, &value.name, &numbers).unwrap();
                }
                Role::Input if value.dtype == DType::I32 => {
                    let number = |t: i32| match value.name.as_str() {
                        "segment_start" => t / 16 * 16,
                        "positions" => t % 16,
                        _ => (t * 7 + 3) % 48,
                    };
                    let numbers: Vec<i32> = (0..count as i32).map(number).collect();
                    self.session.write_i32(&mut self.device, &value.name, &numbers).unwrap();
                }
                Role::Input => {
                    let rates = value.name == "rates";
                    let numbers = if rates { vec![1e-3, 0.1, 0.05] } else { vec![1.0 / 32.0; count] };
                    self.session.write_f32(&mut self.device, &value.name, &numbers).unwrap();
                }
                _ => {}
            }
        }
    }

    /// Both ranges.
    pub fn run(&mut self) -> Result<(), Fault> {
        self.session.run(&mut self.device, Range::Accumulate)?;
        self.session.run(&mut self.device, Range::Update)
    }

    /// The stored bytes of a value.
    pub fn read(&mut self, name: &str) -> Vec<u8> {
        self.session.read(&mut self.device, name).unwrap()
    }

    /// All bytes of the next state.
    pub fn next_state(&mut self) -> Vec<u8> {
        let program = self.program.clone();
        let values = program.program().values.iter();
        let next = values.filter(|value| matches!(value.role, Role::Next { .. }));
        next.flat_map(|value| self.read(&value.name)).collect()
    }

    /// The largest result of all checks.
    pub fn worst_check(&mut self) -> f32 {
        let program = self.program.clone();
        let checks = program.program().accumulate.iter();
        let checks = checks.filter(|instruction| instruction.operator.name() == "product_check");
        let mut worst = 0f32;
        for check in checks {
            let name = &program.program().value(check.outputs[0]).name;
            worst = worst.max(self.session.read_scalar(&mut self.device, name).unwrap());
        }
        worst
    }
}
