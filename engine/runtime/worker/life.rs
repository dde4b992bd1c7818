//! What a worker's thread does: one command after the other, until nobody gives any.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
};

use coea_operators::shape::LeafId;
use timely::worker::Worker;

use super::{Command, Reply, Ticked};
use crate::{
    plan::Plan,
    runtime::{
        artifacts::Artifacts,
        fold::Folds,
        render::{Rendered, Tick, render},
    },
    state::{State, StateError},
};

/// A worker's life: it ends when the driver lets go of the queue.
#[expect(clippy::too_many_arguments, reason = "the ends of one thread, used once")]
pub(super) fn serve(
    worker: &mut Worker,
    plan: &Arc<Plan>,
    state: &State,
    ids: &BTreeMap<String, u16>,
    wanted: &[LeafId],
    artifacts: &Artifacts,
    commands: &Receiver<Command>,
    replies: &Sender<Reply>,
) -> Result<(), StateError> {
    let place = (worker.index(), worker.peers());
    let folds = Rc::new(RefCell::new(Folds::new(plan, ids, &state.snapshot()?, place)));
    let mut rendered = render(worker, plan, &folds, artifacts, wanted);
    let mut tick: Tick = 0;
    while let Ok(command) = commands.recv() {
        match command {
            Command::Rows(leaf, rows) => {
                if let Some(input) = rendered.inputs.get_mut(&leaf) {
                    rows.into_iter().for_each(|(row, diff)| input.update(row, diff));
                }
            }
            Command::Events(source, events) => folds.borrow_mut().apply(source, events)?,
            Command::Ready(fold) => folds.borrow_mut().ready_next(fold),
            Command::Restore(fold, rows, unknown) => {
                if let Some(input) = rendered.inputs.get_mut(&fold) {
                    rows.iter().for_each(|(row, count)| input.update(row.clone(), *count));
                }
                folds.borrow_mut().restore(fold, rows, unknown);
            }
            Command::TouchAll(fold) => folds.borrow_mut().touch_all(fold)?,
            Command::Step => {
                tick += 1;
                let ticked = step(worker, &mut rendered, &folds, tick);
                let _ = replies.send(Reply::Stepped(ticked));
            }
            Command::Scan(source) => {
                let _ = replies.send(Reply::Scanned(folds.borrow().events(source)?));
            }
            Command::Take => {
                let _ = replies.send(Reply::Taken(Box::new(folds.borrow_mut().take())));
            }
            Command::Rebase => folds.borrow_mut().rebase(&state.snapshot()?),
        }
    }
    Ok(())
}

/// Moves every input to the next tick and works until everything before it is done.
fn step(worker: &mut Worker, rendered: &mut Rendered, folds: &Rc<RefCell<Folds>>, tick: Tick) -> Ticked {
    for input in rendered.inputs.values_mut().chain([&mut rendered.clock]) {
        input.advance_to(tick);
        input.flush();
    }
    worker.step_while(|| rendered.probe.less_than(&tick));
    let mut folds = folds.borrow_mut();
    Ticked {
        updates: std::mem::take(&mut rendered.captured.borrow_mut()),
        unmatched: std::mem::take(&mut folds.unmatched),
        net: std::mem::take(&mut folds.net),
    }
}
