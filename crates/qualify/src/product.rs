//! A product on a device, again and again: what soak, speed and the search for settings run.

use crate::cases::QualifyError;
use std::sync::Arc;
use toprope_program::operator::Matmul;
use toprope_program::{
    Builder, DType, Device, Fault, Phase, Range, Role, Session, StateLayout, Tensor, Type, Validated, Width,
    validate,
};

/// `y = a · b` for `a` \[rows, inner\] and `b` \[inner, columns\].
#[derive(Clone, Debug)]
pub struct Product {
    /// Rows of a.
    pub rows: usize,
    /// Terms of each sum.
    pub inner: usize,
    /// Columns of b.
    pub columns: usize,
    /// Dtype of the operands.
    pub dtype: DType,
    /// Dtype of the result.
    pub output: DType,
    program: Arc<Validated>,
}

impl Product {
    /// The program.
    pub fn new(
        [rows, inner, columns]: [usize; 3],
        dtype: DType,
        output: DType,
    ) -> Result<Product, QualifyError> {
        let mut builder = Builder::new("product", Phase::Evaluate);
        let a = builder.input("a", dtype, [rows, inner]);
        let b = builder.input("b", dtype, [inner, columns]);
        let y = builder.declare("y", Type::new(output, [rows, columns]), Role::Output);
        builder
            .apply_to(Matmul { output, row_sums: false }, vec![a.into(), b.into()], vec![y])
            .map_err(|error| QualifyError::Program(error.to_string()))?;
        let program = checked(builder.finish())?;
        Ok(Product { rows, inner, columns, dtype, output, program })
    }

    /// Prepares it with these operands, row-major.
    pub fn open(&self, device: &mut dyn Device, a: &[f64], b: &[f64]) -> Result<Session, Fault> {
        let session = Session::open(device, self.program.clone(), Width::Native, StateLayout::InPlace)?;
        let operands = [("a", a, [self.rows, self.inner]), ("b", b, [self.inner, self.columns])];
        for (name, data, sizes) in operands {
            let tensor = Tensor::rounded(self.dtype, &sizes, data.iter().copied());
            session.write(device, name, &tensor.to_bytes(Width::Native))?;
        }
        Ok(session)
    }

    /// Runs it and gives the stored bytes of the result.
    pub fn run(&self, device: &mut dyn Device, session: &Session) -> Result<Vec<u8>, Fault> {
        session.run(device, Range::Accumulate)?;
        session.read(device, "y")
    }

    /// The result as numbers.
    pub fn numbers(&self, bytes: &[u8]) -> Vec<f64> {
        Tensor::from_bytes(self.output, &[self.rows, self.columns], Width::Native, bytes)
            .map_or_else(Vec::new, |tensor| tensor.data)
    }

    /// Operations of one run.
    pub fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.inner as f64 * self.columns as f64
    }

    /// Bytes that one run reads and writes.
    pub fn bytes(&self) -> f64 {
        let (operand, output) = (self.dtype.size_bytes(Width::Native), self.output.size_bytes(Width::Native));
        let read = self.rows * self.inner + self.inner * self.columns;
        (read * operand + self.rows * self.columns * output) as f64
    }
}

/// A program of the qualification's own, validated.
pub(crate) fn checked(program: toprope_program::Program) -> Result<Arc<Validated>, QualifyError> {
    validate(program).map(Arc::new).map_err(|defects| {
        let listed: Vec<String> = defects.iter().map(ToString::to_string).collect();
        QualifyError::Program(listed.join("; "))
    })
}
