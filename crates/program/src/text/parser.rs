//! Text to program. Never panics; every error has its line and column.

use crate::dtype::DType;
use crate::operator::Operator;
use crate::program::{Instruction, Phase, Program, Range};
use crate::shape::{Dim, Shape, Symbol, SymbolId, View};
use crate::value::{Operand, Role, Value, ValueId};
use serde::de::DeserializeOwned;
use std::collections::HashMap;

/// What is wrong with a program's text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was expected or found.
    pub reason: String,
}

/// Parses the printed form; the result is not yet validated.
pub fn parse(text: &str) -> Result<Program, ParseError> {
    let mut parser = Parser { text, at: 0, values: HashMap::new(), symbols: HashMap::new() };
    parser.program()
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    values: HashMap<String, ValueId>,
    symbols: HashMap<String, SymbolId>,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error<T>(&self, reason: impl Into<String>) -> Result<T, ParseError> {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        Err(ParseError { line, column, reason: reason.into() })
    }

    /// Skips blanks, line ends and comments.
    fn skip(&mut self) {
        loop {
            let trimmed = self.rest().trim_start();
            self.at = self.text.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), ParseError> {
        if self.take(token) { Ok(()) } else { self.error(format!("expected `{token}`")) }
    }

    fn while_chars(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn word(&mut self) -> &'a str {
        self.skip();
        self.while_chars(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    fn number(&mut self) -> Result<usize, ParseError> {
        self.skip();
        let start = self.at;
        let digits = self.while_chars(|c| c.is_ascii_digit());
        match digits.parse() {
            Ok(number) => Ok(number),
            Err(_) => {
                self.at = start;
                self.error("expected a number")
            }
        }
    }

    fn quoted(&mut self) -> Result<String, ParseError> {
        self.expect("\"")?;
        let text = self.while_chars(|c| c != '"' && c != '\n').to_string();
        if !self.rest().starts_with('"') {
            return self.error("expected a closing quote");
        }
        self.at += 1;
        Ok(text)
    }

    fn name(&mut self) -> Result<String, ParseError> {
        self.expect("%")?;
        let name = self.while_chars(|c| c.is_ascii_alphanumeric() || "_.'/-".contains(c));
        if name.is_empty() { self.error("expected a value's name behind `%`") } else { Ok(name.to_string()) }
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T, ParseError> {
        self.skip();
        let mut stream = serde_json::Deserializer::from_str(self.rest()).into_iter::<T>();
        match stream.next() {
            Some(Ok(value)) => {
                self.at += stream.byte_offset();
                Ok(value)
            }
            Some(Err(error)) => self.error(error.to_string()),
            None => self.error("expected a JSON object"),
        }
    }

    fn shape(&mut self) -> Result<Shape, ParseError> {
        self.expect("[")?;
        let mut shape = Vec::new();
        loop {
            if self.take("]") {
                return Ok(shape);
            }
            if !shape.is_empty() {
                self.expect(",")?;
                self.skip();
            }
            let factor = if self.rest().starts_with(|c: char| c.is_ascii_digit()) {
                let factor = self.number()?;
                if !self.take("*") {
                    shape.push(Dim::from(factor));
                    continue;
                }
                factor
            } else {
                1
            };
            let start = self.at;
            let name = self.word();
            match self.symbols.get(name) {
                Some(symbol) => shape.push(Dim::symbolic(*symbol, factor)),
                None => {
                    self.at = start;
                    return self.error(format!("`{name}` is not a declared symbol"));
                }
            }
        }
    }

    fn numbers(&mut self) -> Result<Vec<usize>, ParseError> {
        self.expect("[")?;
        let mut numbers = Vec::new();
        loop {
            if self.take("]") {
                return Ok(numbers);
            }
            if !numbers.is_empty() {
                self.expect(",")?;
            }
            numbers.push(self.number()?);
        }
    }

    fn r#type(&mut self) -> Result<(DType, Shape), ParseError> {
        let start = self.at;
        let word = self.word();
        let Some(dtype) = DType::from_name(word) else {
            self.at = start;
            return self.error(format!("`{word}` is not a dtype: f32, bf16, i32 or u32"));
        };
        Ok((dtype, self.shape()?))
    }

    fn declare(
        &mut self,
        program: &mut Program,
        name: String,
        dtype: DType,
        shape: Shape,
        role: Role,
    ) -> Result<ValueId, ParseError> {
        let id = ValueId(program.values.len() as u32);
        if self.values.insert(name.clone(), id).is_some() {
            return self.error(format!("%{name} is declared a second time"));
        }
        program.values.push(Value { name, dtype, shape, role });
        Ok(id)
    }

    fn program(&mut self) -> Result<Program, ParseError> {
        self.expect("program")?;
        let name = self.quoted()?;
        let start = self.at;
        let phase = match self.word() {
            "train" => Phase::Train,
            "evaluate" => Phase::Evaluate,
            "prefill" => Phase::Prefill,
            "decode" => Phase::Decode,
            other => {
                self.at = start;
                return self.error(format!("`{other}` is not a phase: train, evaluate, prefill or decode"));
            }
        };
        let mut program = Program {
            name,
            phase,
            symbols: Vec::new(),
            values: Vec::new(),
            accumulate: Vec::new(),
            update: Vec::new(),
        };
        loop {
            self.skip();
            if self.rest().is_empty() {
                return Ok(program);
            }
            let start = self.at;
            match self.word() {
                "symbol" => {
                    let name = self.word().to_string();
                    self.expect("<=")?;
                    let bound = self.number()?;
                    let id = SymbolId(program.symbols.len() as u16);
                    self.symbols.insert(name.clone(), id);
                    program.symbols.push(Symbol { name, bound });
                }
                "next" => {
                    let name = self.name()?;
                    self.expect("of")?;
                    let of = self.known()?;
                    let Value { dtype, shape, .. } = program.value(of).clone();
                    self.declare(&mut program, name, dtype, shape, Role::Next { of })?;
                }
                kind @ ("state" | "constant" | "input" | "carried" | "output" | "cache") => {
                    let name = self.name()?;
                    self.expect(":")?;
                    let (dtype, shape) = self.r#type()?;
                    let role = match kind {
                        "state" => Role::State { initial: self.json()? },
                        "constant" => Role::Constant { content: self.json()? },
                        "input" => Role::Input,
                        "carried" => Role::Carried,
                        "output" => Role::Output,
                        _ => Role::Cache,
                    };
                    self.declare(&mut program, name, dtype, shape, role)?;
                }
                "accumulate" => self.range(&mut program, Range::Accumulate)?,
                "update" => self.range(&mut program, Range::Update)?,
                other => {
                    self.at = start;
                    return self.error(format!("`{other}` is not a declaration or a range"));
                }
            }
        }
    }

    fn known(&mut self) -> Result<ValueId, ParseError> {
        self.skip();
        let start = self.at;
        let name = self.name()?;
        match self.values.get(&name) {
            Some(id) => Ok(*id),
            None => {
                self.at = start;
                self.error(format!("%{name} is not declared"))
            }
        }
    }

    fn range(&mut self, program: &mut Program, range: Range) -> Result<(), ParseError> {
        self.expect("{")?;
        while !self.take("}") {
            let instruction = self.instruction(program)?;
            match range {
                Range::Accumulate => program.accumulate.push(instruction),
                Range::Update => program.update.push(instruction),
            }
        }
        Ok(())
    }

    fn instruction(&mut self, program: &mut Program) -> Result<Instruction, ParseError> {
        let mut outputs = Vec::new();
        loop {
            self.skip();
            let start = self.at;
            let name = self.name()?;
            if self.take(":") {
                let (dtype, shape) = self.r#type()?;
                outputs.push(self.declare(program, name, dtype, shape, Role::Scratch)?);
            } else {
                self.at = start;
                outputs.push(self.known()?);
            }
            if !self.take(",") {
                break;
            }
        }
        self.expect("=")?;
        self.skip();
        let start = self.at;
        let operator = self.word().to_string();
        self.expect("(")?;
        let mut operands = Vec::new();
        while !self.take(")") {
            if !operands.is_empty() {
                self.expect(",")?;
            }
            let value = self.known()?;
            let view = if self.rest().starts_with('@') {
                self.at += 1;
                Some(View { offset: self.number()?, shape: self.shape()?, strides: self.numbers()? })
            } else {
                None
            };
            operands.push(Operand { value, view });
        }
        self.skip();
        let mut attributes = if self.rest().starts_with('{') {
            self.json::<serde_json::Map<String, serde_json::Value>>()?
        } else {
            serde_json::Map::new()
        };
        attributes.insert("operator".into(), operator.clone().into());
        let after = self.at;
        let operator: Operator = match serde_json::from_value(attributes.into()) {
            Ok(operator) => operator,
            Err(error) => {
                self.at = start;
                return self.error(format!("`{operator}`: {error}"));
            }
        };
        self.at = after;
        let part = if self.take("@") { self.quoted()? } else { String::new() };
        let check = if self.take("!") {
            let bit = self.number()?;
            match u16::try_from(bit) {
                Ok(bit) => Some(bit),
                Err(_) => return self.error("a check bit is below 65536"),
            }
        } else {
            None
        };
        Ok(Instruction { operator, operands, outputs, part, check })
    }
}
