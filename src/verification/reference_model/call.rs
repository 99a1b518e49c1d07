//! What one call consists of.

use crate::{
    bucket::BucketParams,
    redis::{
        op::Op,
        script::{Argument, First, TAKE},
    },
};

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

    pub(crate) fn argument(&self) -> Vec<u8> {
        let mut argument = Argument::default();
        for ((_, params), first) in self.keys.iter().zip(&self.firsts) {
            argument.bucket(*params, *first);
        }
        for step in &self.steps {
            match step {
                Step::Take { n, max_wait, costs } => argument.take(*n, *max_wait, costs),
                Step::Op(bucket, op) => argument.op(*bucket, *op),
            }
        }
        argument.into_bytes()
    }

    /// Reads an argument as the script does.
    pub(crate) fn read(keys: &[String], argument: &[u8], recovered: f64) -> Self {
        let mut numbers = argument.chunks_exact(8).map(|number| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(number);
            f64::from_le_bytes(bytes)
        });
        let mut call = Self {
            keys: Vec::with_capacity(keys.len()),
            firsts: Vec::with_capacity(keys.len()),
            steps: Vec::new(),
            recovered,
        };
        let short = "an argument of whole steps";
        for key in keys {
            let mut next = || numbers.next().expect(short);
            let params = BucketParams {
                capacity: next(),
                per_us: next(),
            };
            call.keys.push((key.clone(), params));
            let (cost, n, max_wait_us) = (next(), next() as u32, next());
            call.firsts.push(First {
                cost,
                n,
                max_wait_us,
            });
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
