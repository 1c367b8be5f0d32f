//! Every event and field of the journal, written down once: `docs/journal.md` is made from it, and a test compares it
//! with what the guard's entries become.

use std::fmt::Write;

/// One event.
#[derive(Debug)]
pub struct EventSchema {
    /// The value of `event`.
    pub event: &'static str,
    /// What it says.
    pub meaning: &'static str,
    /// Its fields beside `attempt`, `time` and `event`.
    pub fields: &'static [FieldSchema],
}

/// One field.
#[derive(Debug)]
pub struct FieldSchema {
    /// Its name.
    pub name: &'static str,
    /// Its JSON type.
    pub kind: &'static str,
    /// What it says, with its unit.
    pub meaning: &'static str,
    /// Whether each line of the event has it.
    pub always: bool,
}

const fn field(name: &'static str, kind: &'static str, meaning: &'static str) -> FieldSchema {
    FieldSchema { name, kind, meaning, always: true }
}

const fn optional(name: &'static str, kind: &'static str, meaning: &'static str) -> FieldSchema {
    FieldSchema { name, kind, meaning, always: false }
}

const STEP: FieldSchema = field("step", "number", "the step, counted from 0");
const STEPS: FieldSchema = field("step", "number", "committed steps: the state is that of so many");
const NUMBER: FieldSchema = field("number", "number", "which execution of any step in this process, from 1");
const DEVICE: FieldSchema =
    field("device", "number", "the device's index in the `devices` of the attempt's `start`");
const RANK: FieldSchema = field("rank", "number", "the shard of the run");
const STATES: FieldSchema = field("states", "list of numbers", "digests of the state, by rank");
const REASON: FieldSchema = field("reason", "text", "why");

/// All events.
pub const EVENTS: &[EventSchema] = &[
    EventSchema {
        event: "created",
        meaning: "The first process began; always the first line.",
        fields: BEGIN,
    },
    EventSchema { event: "resumed", meaning: "Another process goes on with the run.", fields: BEGIN },
    EventSchema {
        event: "start",
        meaning: "Training begins from the state of `step` committed steps. What older attempts committed at `step` \
                  and above is void.",
        fields: &[
            STEPS,
            field("device", "text", "the primary device"),
            field("level", "text", "its dispatch level"),
            field("program", "text", "the hash of the step's program"),
            field("corpus", "text", "the hash of the data"),
            optional(
                "devices",
                "list of texts",
                "the devices by name; their order is that of the indices below",
            ),
            optional("checks", "text", "the level of the checks: off, sampled, full or shadow"),
        ],
    },
    EventSchema {
        event: "worker_active",
        meaning: "A worker began to serve a rank.",
        fields: &[
            RANK,
            field("generation", "number", "the worker's number, never used twice in a process"),
            DEVICE,
            field("standby", "true or false", "whether it had been standing by"),
        ],
    },
    EventSchema {
        event: "committed",
        meaning: "A step was committed, and with it the batch of its number: an entry of the ledger.",
        fields: &[STEP, NUMBER, STATES],
    },
    EventSchema {
        event: "fault",
        meaning: "Something went wrong. The fields of its class follow: `lost` has reason, and for_good where the vendor's \
                  software says that the device is to be replaced; `hang` waited_ms; `driver` \
                  code, message; `out_of_memory` needed_bytes, available_bytes; `unsupported` operator, dtype, shape, \
                  reason; `non_finite` value; `mismatch` operator, error, tolerance; `spike` metric, value, limit; \
                  `slow` factor. A number that is not finite is null.",
        fields: &[
            field("class", "text", "one of the nine classes"),
            DEVICE,
            RANK,
            field("step", "number", "the step under way, counted from 0"),
            field("place", "object or null", "the operator, where known: range, index, operator, part"),
            field("action", "text", "what is done about it, in the policy's words"),
            optional("injected", "true or false", "whether it was injected on purpose"),
            optional("cost_seconds", "number", "what it cost, where that is known at once"),
        ],
    },
    EventSchema {
        event: "injected",
        meaning: "A fault of the schedule was carried out, on purpose. What the guard saw of it is a `fault` of its own, \
                  or nothing.",
        fields: &[
            STEP,
            field("id", "number", "which fault of the schedule, from 0"),
            field("what", "text or object", "what was done, in the words of docs/faults.md"),
        ],
    },
    EventSchema {
        event: "recovered",
        meaning: "The run is past what went wrong: the steps that were taken back are committed again, or one more where none \
                  was. It ends all faults of its attempt before it; \
                  what it cost counts for the first of them.",
        fields: &[
            field("step", "number", "committed steps then"),
            field("seconds", "number", "from the fault to here, beyond what the step takes"),
            field("steps_redone", "number", "executions that had to be done again"),
        ],
    },
    EventSchema {
        event: "judged",
        meaning: "An alarm was looked into.",
        fields: &[
            STEP,
            NUMBER,
            field("verdict", "text", "`transient`, `persistent`, `false_alarm`, `data` or `unknown`"),
            field("detail", "text", "what that is founded on"),
        ],
    },
    EventSchema {
        event: "retried",
        meaning: "An execution was given up before it was committed; the step will be run again.",
        fields: &[STEP, NUMBER],
    },
    EventSchema {
        event: "evidence",
        meaning: "A step that was run again after an alarm gave other bits.",
        fields: &[
            STEP,
            NUMBER,
            field("before", "number or null", "the digest of the gradients that were given up"),
            field("now", "number or null", "the digest of the new ones"),
        ],
    },
    EventSchema {
        event: "rolled_back",
        meaning: "Committed steps were taken back. Entries of the ledger at `to` and above are void.",
        fields: &[
            field("from", "number", "committed steps before"),
            field("to", "number", "committed steps now"),
            field("source", "text", "where the state came from: committed, previous, snapshot or checkpoint"),
        ],
    },
    EventSchema {
        event: "state_refused",
        meaning: "A state was not taken in: it was not the committed one, or not whole. An older one is tried next.",
        fields: &[
            RANK,
            field("source", "text", "where it came from: committed, previous, snapshot or checkpoint"),
            STEPS,
            REASON,
        ],
    },
    EventSchema {
        event: "quarantined",
        meaning: "A device is not to be used until it has passed a test.",
        fields: &[DEVICE, REASON],
    },
    EventSchema { event: "failed_over", meaning: "A rank went on elsewhere.", fields: MOVED },
    EventSchema {
        event: "failed_back",
        meaning: "A rank went back to a device that had passed its test.",
        fields: MOVED,
    },
    EventSchema {
        event: "operator_moved",
        meaning: "An operator that a device computes wrong runs on another one from now on, the rest of the step where it was.",
        fields: &[
            DEVICE,
            field("operator", "text", "the operator"),
            field("to", "number", "the index of the device that computes it now"),
        ],
    },
    EventSchema {
        event: "retested",
        meaning: "A quarantined device was tested.",
        fields: &[
            DEVICE,
            field("passed", "true or false", "whether it passed"),
            field("detail", "text", "what was found"),
        ],
    },
    EventSchema {
        event: "batch_skipped",
        meaning: "A batch was left out, because the policy says so.",
        fields: &[STEP, REASON],
    },
    EventSchema {
        event: "checkpoint",
        meaning: "A durable checkpoint was written.",
        fields: &[STEPS, optional("states", "list of numbers", "digests of the state, by rank")],
    },
    EventSchema {
        event: "checkpoint_failed",
        meaning: "A durable checkpoint could not be written; the older ones stay.",
        fields: &[STEPS, REASON],
    },
    EventSchema {
        event: "snapshot_interval",
        meaning: "How often the state is copied to the host was chosen anew, by Young's formula \
                  (sqrt(2 × snapshot_seconds × fault_seconds) / step_seconds) or by the recipe.",
        fields: &[
            field("steps", "number", "a snapshot every so many steps"),
            field("snapshot_seconds", "number", "how long one keeps the device from its work"),
            field("step_seconds", "number", "how long a step takes"),
            field("fault_seconds", "number", "mean time between faults that need one"),
        ],
    },
    EventSchema {
        event: "stopped",
        meaning: "The guard ended.",
        fields: &[
            field(
                "reason",
                "text or object",
                "`done`, `requested`, `no_device`, `no_state`, or `{ policy: … }`",
            ),
            STEPS,
        ],
    },
    EventSchema {
        event: "end",
        meaning: "The process ended in order.",
        fields: &[field("summary", "object", "what `train --json` prints")],
    },
];

const BEGIN: &[FieldSchema] = &[
    field("run_id", "text", "the run's name, 16 hexadecimal digits; the same in all of its attempts"),
    field("process", "number", "the process's number on its machine"),
    field("toprope_version", "text", "who writes"),
    optional(
        "journal_version",
        "number",
        "the version of this page; a reader refuses a higher one than its own",
    ),
];

const MOVED: &[FieldSchema] = &[
    RANK,
    field("from", "number", "the index of the device that it left"),
    field("to", "number", "the index of the device that serves now"),
];

/// The page `docs/journal.md`.
pub fn page() -> String {
    let mut page = String::from(HEAD);
    for schema in EVENTS {
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n| field | type | meaning |\n| --- | --- | --- |\n",
            schema.event, schema.meaning
        );
        for field in schema.fields {
            let mark = if field.always { "" } else { "?" };
            let _ = writeln!(page, "| `{}`{mark} | {} | {} |", field.name, field.kind, field.meaning);
        }
    }
    page
}

const HEAD: &str = "# The journal

Made by `cargo xtask docs` from the guard; do not edit.

`journal.jsonl` in a run's folder says what happened, a JSON object a line; `metrics.jsonl` beside it has a line for
each committed step. Both are only ever appended to. They are made durable with every checkpoint and at every fault. A
process that dies may leave the last line torn: a reader names it and passes it over, and the next process ends it, so
that it stays one bad line among good ones.

Each line has `attempt` (the process that wrote it, from 1), `time` (UTC, RFC 3339, milliseconds) and `event`. `?` marks
a field that not each line of its event has. A reader passes over events and fields that it does not know.

The ledger follows from it: the entries are the `committed` lines; a `start` at step S voids those of older attempts at S
and above, and `rolled_back` to S voids all at S and above. Then each step below the last has exactly one entry (or a
`batch_skipped`): no batch was lost, and none was counted twice. `toprope status RUN --ledger` does this proof.

A line of `metrics.jsonl` has `step` (steps that are done, so one more than the ledger's number), `loss` (nats per
token), `parts`, `gradient_norm` (before clipping), `learning_rate`, `tokens`, `seconds` (wall time of the step) and,
where the checks were measured, `checks` (how many fired) and `check_seconds`. Where a step has two lines, the later
attempt's counts, and within an attempt the later line.
";
