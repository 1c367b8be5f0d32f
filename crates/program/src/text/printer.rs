//! Program to text.

use crate::program::{Instruction, Program, Range};
use crate::shape::ShapeText;
use crate::value::{Operand, Role, ValueId};
use std::fmt::Write;

/// Prints a program.
pub fn print(program: &Program) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_program(&mut text, program);
    text
}

fn write_program(text: &mut String, program: &Program) -> std::fmt::Result {
    writeln!(text, "program \"{}\" {}", program.name, program.phase.name())?;
    for symbol in &program.symbols {
        writeln!(text, "symbol {} <= {}", symbol.name, symbol.bound)?;
    }
    for value in &program.values {
        let r#type = format!("{}{}", value.dtype, shape(program, &value.shape));
        match &value.role {
            Role::Scratch => continue,
            Role::State { initial } => writeln!(text, "state %{}: {} {}", value.name, r#type, json(initial))?,
            Role::Constant { content } => {
                writeln!(text, "constant %{}: {} {}", value.name, r#type, json(content))?
            }
            Role::Next { of } => writeln!(text, "next %{} of %{}", value.name, program.value(*of).name)?,
            Role::Input => writeln!(text, "input %{}: {}", value.name, r#type)?,
            Role::Carried => writeln!(text, "carried %{}: {}", value.name, r#type)?,
            Role::Output => writeln!(text, "output %{}: {}", value.name, r#type)?,
            Role::Cache => writeln!(text, "cache %{}: {}", value.name, r#type)?,
        }
    }
    for range in Range::ALL {
        if range == Range::Update && program.update.is_empty() {
            continue;
        }
        writeln!(text, "\n{} {{", range.name())?;
        for instruction in program.range(range) {
            text.push_str("  ");
            write_instruction(text, program, instruction)?;
            text.push('\n');
        }
        writeln!(text, "}}")?;
    }
    Ok(())
}

fn write_instruction(text: &mut String, program: &Program, instruction: &Instruction) -> std::fmt::Result {
    for (index, id) in instruction.outputs.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        write_output(text, program, *id)?;
    }
    write!(text, " = {}(", instruction.operator.name())?;
    for (index, operand) in instruction.operands.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        write_operand(text, program, operand)?;
    }
    text.push(')');
    let mut attributes = serde_json::to_value(&instruction.operator).unwrap_or_default();
    if let Some(map) = attributes.as_object_mut() {
        map.remove("operator");
        if !map.is_empty() {
            write!(text, " {attributes}")?;
        }
    }
    if !instruction.part.is_empty() {
        write!(text, " @\"{}\"", instruction.part)?;
    }
    if let Some(bit) = instruction.check {
        write!(text, " !{bit}")?;
    }
    Ok(())
}

fn write_output(text: &mut String, program: &Program, id: ValueId) -> std::fmt::Result {
    let value = program.value(id);
    write!(text, "%{}", value.name)?;
    if value.role == Role::Scratch {
        write!(text, ": {}{}", value.dtype, shape(program, &value.shape))?;
    }
    Ok(())
}

fn write_operand(text: &mut String, program: &Program, operand: &Operand) -> std::fmt::Result {
    write!(text, "%{}", program.value(operand.value).name)?;
    if let Some(view) = &operand.view {
        write!(text, "@{}{}{:?}", view.offset, shape(program, &view.shape), view.strides)?;
    }
    Ok(())
}

fn shape(program: &Program, shape: &[crate::Dim]) -> String {
    ShapeText { shape, symbols: &program.symbols }.to_string()
}

fn json(value: &impl serde::Serialize) -> String {
    // Only structs of numbers and strings come here; they serialise.
    serde_json::to_string(value).unwrap_or_default()
}
