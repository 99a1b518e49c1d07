//! What one call consists of.

use crate::{
    bucket::BucketParams,
    redis::{
        op::Op,
        script::{Arguments, First, TAKE},
    },
    scope::Keyspace,
};

/// The field of a bucket, and the length of its name. A key is a name, or a name, a slash, and 32
/// hexadecimal digits.
fn field(key: &str) -> (Vec<u8>, usize) {
    let Some((name, digits)) = key.split_once('/') else {
        return (key.as_bytes().to_vec(), key.len());
    };
    let bytes = (0..32)
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits"));
    let mut field = [name.as_bytes(), &[0xFF]].concat();
    field.extend(bytes);
    (field, name.len())
}

/// The key of the bucket in a field, of which the first bytes are the name.
fn key(field: &[u8], name: usize) -> String {
    let (name, rest) = field.split_at(name);
    let mut key: String = name.iter().copied().map(char::from).collect();
    match rest {
        [] => {}
        [0xFF, hash @ ..] if hash.len() == 16 => {
            key.push('/');
            hash.iter().for_each(|byte| key += &format!("{byte:02x}"));
        }
        other => key += &String::from_utf8_lossy(other),
    }
    key
}

/// Buckets are named by their index in the call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// `n` equal requests; each takes from all of these buckets or from none.
    Take {
        n: u32,
        max_wait: f64,
        /// Bucket and cost.
        costs: Vec<(usize, f64)>,
    },
    Op(usize, Op),
}

impl Step {
    pub(crate) fn has_answer(&self) -> bool {
        match self {
            Self::Take { .. } => true,
            Self::Op(_, op) => op.has_answer(),
        }
    }

    fn buckets(&self) -> Vec<usize> {
        match self {
            Self::Take { costs, .. } => costs.iter().map(|(bucket, _)| *bucket).collect(),
            Self::Op(bucket, _) => vec![*bucket],
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) keys: Vec<(String, BucketParams)>,
    /// The first request for each key.
    pub(crate) firsts: Vec<First>,
    pub(crate) steps: Vec<Step>,
    /// The fraction of peers that have recovered from an outage.
    pub(crate) recovered: f64,
}

impl Call {
    pub(crate) fn new(key: &str, params: BucketParams, steps: Vec<Step>) -> Self {
        Self::of(vec![(key.to_owned(), params)], steps)
    }

    pub(crate) fn of(keys: Vec<(String, BucketParams)>, steps: Vec<Step>) -> Self {
        Self {
            firsts: vec![First::NONE; keys.len()],
            keys,
            steps,
            recovered: 1.0,
        }
    }

    /// The same call as the batcher sends it: a request that is the first step on its only bucket
    /// goes with the key.
    pub(crate) fn hoisted(mut self) -> Self {
        let mut touched = vec![false; self.keys.len()];
        let mut may_stop = false;
        let firsts = &mut self.firsts;
        self.steps.retain(|step| {
            let first = match step {
                &Step::Take {
                    n,
                    max_wait,
                    ref costs,
                } => match costs[..] {
                    [(bucket, cost)] if !touched[bucket] && !may_stop => Some((
                        bucket,
                        First {
                            cost,
                            n,
                            max_wait_us: max_wait,
                        },
                    )),
                    _ => None,
                },
                Step::Op(_, op) => {
                    may_stop |= *op == Op::EmptyOrStop;
                    None
                }
            };
            for bucket in step.buckets() {
                touched[bucket] = true;
            }
            if let Some((bucket, first)) = first {
                firsts[bucket] = first;
            }
            first.is_none()
        });
        self
    }

    /// How many steps have an answer in the reply.
    pub(crate) fn answers(&self) -> usize {
        self.steps.iter().filter(|step| step.has_answer()).count()
    }

    pub(crate) fn arguments(&self, keyspace: &Keyspace) -> Arguments {
        let mut arguments = Arguments::new(keyspace);
        for ((key, params), first) in self.keys.iter().zip(&self.firsts) {
            let (field, name) = field(key);
            arguments.field(keyspace, (&field, name), *params, *first);
        }
        for step in &self.steps {
            match step {
                Step::Take { n, max_wait, costs } => arguments.take(*n, *max_wait, costs),
                Step::Op(bucket, op) => arguments.op(*bucket, *op),
            }
        }
        arguments
    }

    /// Reads arguments as the script does: its first one, and the fields.
    pub(crate) fn read(numbers: &[u8], fields: &[&[u8]], recovered: f64) -> Self {
        let mut numbers = numbers.chunks_exact(8).map(|number| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(number);
            f64::from_le_bytes(bytes)
        });
        let mut call = Self {
            keys: Vec::with_capacity(fields.len()),
            firsts: Vec::with_capacity(fields.len()),
            steps: Vec::new(),
            recovered,
        };
        let short = "an argument of whole steps";
        while call.keys.len() < fields.len() {
            let mut next = || numbers.next().expect(short);
            let (buckets, name, _, _) = (next() as usize, next() as usize, next(), next());
            let params = BucketParams {
                capacity: next(),
                per_us: next(),
            };
            let first = First {
                cost: next(),
                n: next() as u32,
                max_wait_us: next(),
            };
            for field in &fields[call.keys.len()..][..buckets] {
                call.keys.push((key(field, name), params));
                call.firsts.push(first);
            }
        }
        while let Some(code) = numbers.next() {
            let mut next = || numbers.next().expect(short);
            call.steps.push(if code == TAKE {
                let (n, max_wait, buckets) = (next() as u32, next(), next() as usize);
                let costs = (0..buckets).map(|_| (next() as usize - 1, next()));
                let costs = costs.collect();
                Step::Take { n, max_wait, costs }
            } else {
                let (bucket, op) = Op::decode(code, next);
                Step::Op(bucket, op)
            });
        }
        call
    }
}
