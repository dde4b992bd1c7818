//! Workers: threads that hold shards of the histories and a copy of the dataflow each.
//!
//! The driver tells them what to do through bounded queues and hears from them once a tick. They
//! share nothing but the loaded artifacts, and none of them calls a model.

mod life;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
};

use coea_operators::{row::Row, shape::LeafId};
use timely::{WorkerConfig, communication::WorkerGuards};

use super::{
    artifacts::Artifacts,
    fold::{FoldChanges, Update},
    render::Channel,
};
use crate::{
    plan::Plan,
    state::{State, history::shard},
};

/// Messages a worker may have waiting; more make the driver wait.
const QUEUE: usize = 2;

enum Command {
    Rows(LeafId, Vec<Update>),
    Events(u16, Vec<Update>),
    Ready(LeafId),
    Restore(LeafId, Vec<Update>, Vec<(Row, Row)>),
    TouchAll(LeafId),
    Step,
    Scan(u16),
    Take,
    Rebase,
}

enum Reply {
    Stepped(Ticked),
    Scanned(Vec<Update>),
    Taken(Box<FoldChanges>),
    Failed(String),
}

/// What a tick brought.
#[derive(Default)]
pub struct Ticked {
    /// Updates by channel.
    pub updates: BTreeMap<Channel, Vec<Update>>,
    /// Changes of the unmatched retractions.
    pub unmatched: Vec<Update>,
    /// Net events by source.
    pub net: BTreeMap<u16, i64>,
}

/// Adds updates to others by channel; the first of a channel are moved, not copied.
pub(super) fn add(all: &mut BTreeMap<Channel, Vec<Update>>, more: BTreeMap<Channel, Vec<Update>>) {
    for (channel, updates) in more {
        match all.get_mut(&channel) {
            Some(known) => known.extend(updates),
            None => _ = all.insert(channel, updates),
        }
    }
}

/// The driver's side of the workers.
pub struct Workers {
    commands: Vec<SyncSender<Command>>,
    replies: Vec<Receiver<Reply>>,
    artifacts: Artifacts,
    _guards: WorkerGuards<()>,
}

/// Why a worker could not go on.
#[derive(Debug, thiserror::Error)]
#[error("a worker failed: {0}")]
pub struct WorkerError(pub String);

type Ends = Mutex<Vec<Option<(Receiver<Command>, Sender<Reply>)>>>;

impl Workers {
    /// Starts workers on a plan. `ids` are the numbers of the sources' histories, `wanted` the
    /// leaves whose rows are reported.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn start(
        plan: &Arc<Plan>,
        state: &State,
        ids: &BTreeMap<String, u16>,
        wanted: Vec<LeafId>,
        count: usize,
        artifacts: &Artifacts,
    ) -> Result<Self, WorkerError> {
        let (mut commands, mut replies, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (command, commanded) = sync_channel(QUEUE);
            let (reply, replied) = channel();
            commands.push(command);
            replies.push(replied);
            ends.push(Some((commanded, reply)));
        }
        let ends: Arc<Ends> = Arc::new(Mutex::new(ends));
        let (plan, state, ids, shared) = (plan.clone(), state.clone(), ids.clone(), artifacts.clone());
        let config = timely::Config {
            communication: if count == 1 {
                timely::CommunicationConfig::Thread
            } else {
                timely::CommunicationConfig::Process(count)
            },
            worker: WorkerConfig::default(),
        };
        let guards = timely::execute(config, move |worker| {
            let end = ends.lock().unwrap_or_else(PoisonError::into_inner)[worker.index()].take();
            let Some((commands, replies)) = end else { return };
            if let Err(error) =
                life::serve(worker, &plan, &state, &ids, &wanted, &shared, &commands, &replies)
            {
                shared.fail(error.to_string());
                let _ = replies.send(Reply::Failed(error.to_string()));
            }
        })
        .map_err(WorkerError)?;
        Ok(Workers { commands, replies, artifacts: artifacts.clone(), _guards: guards })
    }

    fn worker_of(&self, key: &Row) -> usize {
        usize::from(shard(key)) % self.commands.len()
    }

    fn send(&self, worker: usize, command: Command) -> Result<(), WorkerError> {
        self.commands[worker].send(command).map_err(|_| self.failure())
    }

    fn broadcast(&self, command: impl Fn() -> Command) -> Result<(), WorkerError> {
        (0..self.commands.len()).try_for_each(|worker| self.send(worker, command()))
    }

    fn failure(&self) -> WorkerError {
        WorkerError(self.artifacts.failure().unwrap_or_else(|| "it stopped".to_string()))
    }

    fn replies(&self) -> Result<Vec<Reply>, WorkerError> {
        self.replies
            .iter()
            .map(|replies| match replies.recv() {
                Ok(Reply::Failed(cause)) => Err(WorkerError(cause)),
                Ok(reply) => Ok(reply),
                Err(_) => Err(self.failure()),
            })
            .collect()
    }

    fn deal(&self, updates: Vec<Update>) -> Vec<Vec<Update>> {
        if self.commands.len() == 1 {
            return vec![updates];
        }
        let mut dealt: Vec<Vec<Update>> = vec![Vec::new(); self.commands.len()];
        for update in updates {
            dealt[self.worker_of(&update.0.0)].push(update);
        }
        dealt
    }

    /// Feeds rows into an input of the dataflow.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn rows(&self, leaf: LeafId, updates: Vec<Update>) -> Result<(), WorkerError> {
        let dealt = self.deal(updates).into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        dealt.into_iter().try_for_each(|(worker, rows)| self.send(worker, Command::Rows(leaf, rows)))
    }

    /// Applies events to the histories of a source.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn events(&self, source: u16, updates: Vec<Update>) -> Result<(), WorkerError> {
        let dealt = self.deal(updates).into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        dealt.into_iter().try_for_each(|(worker, rows)| self.send(worker, Command::Events(source, rows)))
    }

    /// Lets a fold begin once this tick's side input is in.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn ready(&self, fold: LeafId) -> Result<(), WorkerError> {
        self.broadcast(|| Command::Ready(fold))
    }

    /// Gives a fold what it gave at the last commit.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn restore(
        &self,
        fold: LeafId,
        rows: Vec<Update>,
        unknown: Vec<(Row, Row)>,
    ) -> Result<(), WorkerError> {
        let mut pairs: Vec<Vec<(Row, Row)>> = vec![Vec::new(); self.commands.len()];
        for (item, user) in unknown {
            pairs[self.worker_of(&user)].push((item, user));
        }
        let dealt = self.deal(rows).into_iter().zip(pairs).enumerate();
        dealt
            .into_iter()
            .try_for_each(|(worker, (rows, pairs))| self.send(worker, Command::Restore(fold, rows, pairs)))
    }

    /// Has every key of a fold's source folded anew.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn touch_all(&self, fold: LeafId) -> Result<(), WorkerError> {
        self.broadcast(|| Command::TouchAll(fold))
    }

    /// Completes the current tick everywhere and says what it brought.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn tick(&self) -> Result<Ticked, WorkerError> {
        self.broadcast(|| Command::Step)?;
        let mut all = Ticked::default();
        for reply in self.replies()? {
            let Reply::Stepped(ticked) = reply else { continue };
            add(&mut all.updates, ticked.updates);
            all.unmatched.extend(ticked.unmatched);
            ticked.net.into_iter().for_each(|(source, n)| *all.net.entry(source).or_default() += n);
        }
        match self.artifacts.failure() {
            Some(cause) => Err(WorkerError(cause)),
            None => Ok(all),
        }
    }

    /// All events of a source, sorted.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn scan(&self, source: u16) -> Result<Vec<Update>, WorkerError> {
        self.broadcast(|| Command::Scan(source))?;
        let mut all = Vec::new();
        for reply in self.replies()? {
            if let Reply::Scanned(rows) = reply {
                all.extend(rows);
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// The changes of the epoch, by worker, to be committed.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn take(&self) -> Result<Vec<FoldChanges>, WorkerError> {
        self.broadcast(|| Command::Take)?;
        let taken = self.replies()?.into_iter().filter_map(|reply| match reply {
            Reply::Taken(changes) => Some(*changes),
            _ => None,
        });
        Ok(taken.collect())
    }

    /// Has the workers read what was committed since.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn rebase(&self) -> Result<(), WorkerError> {
        self.broadcast(|| Command::Rebase)
    }
}
