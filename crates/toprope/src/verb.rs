//! The verbs, a file each.

mod devices; // what is there
mod diagnose; // which operator is wrong
mod docs; // generated pages
mod eval; // what a published model makes of a text
mod export; // a folder that transformers opens
mod footprint; // what memory a run takes
mod generate; // text in a published model's words
mod inspect; // what a recipe is
mod oracle; // what devices are judged by
mod prepare; // a recipe's data
pub mod published; // published models on a device
mod qualify; // whether a device is fit
pub mod recipe; // finding one
mod rehearse; // every class of fault, on purpose
pub mod replay; // state and batch of any step
mod report; // evidence that can be sent
pub mod status; // how a run stands
mod train; // the main job
mod validated; // programs of our own making
pub mod worker; // a device behind two pipes

use crate::command::{Command, Verb};
use crate::exit::{Exit, Failure};

/// Runs a verb.
pub fn run(command: Command) -> Result<Exit, Failure> {
    match command.verb {
        Verb::Train(arguments) => train::run(&arguments, command.json),
        Verb::Inspect(arguments) => inspect::run(&arguments, command.json),
        Verb::Export(arguments) => export::run(&arguments, command.json),
        Verb::Generate(arguments) => generate::generate(&arguments, command.json),
        Verb::Chat(arguments) => generate::chat(&arguments, command.json),
        Verb::Eval(arguments) => eval::run(&arguments, command.json),
        Verb::Diagnose(arguments) => diagnose::run(&arguments, command.json),
        Verb::Report(arguments) => report::run(&arguments, command.json),
        Verb::Rehearse(arguments) => rehearse::run(&arguments, command.json),
        Verb::Worker { python } => worker::run(python),
        Verb::Status(arguments) => status::run(&arguments, command.json),
        Verb::Qualify(arguments) => qualify::run(&arguments, command.json),
        Verb::Devices { python } => devices::run(python, command.json),
        Verb::Docs { page } => docs::run(&page),
    }
}
