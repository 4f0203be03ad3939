//! From what the world says of a character to what the keeper is told.

use crate::keeper::{CharacterRow, KeeperCommand};
use crate::world::Save;

/// What the keeper hears of a save.
pub fn keeper_command(save: &Save) -> Option<KeeperCommand> {
    let row = CharacterRow {
        client_id: save.client_id,
        character: save.id.0 & ((1 << 56) - 1),
        owner: save.owner,
        epoch: save.epoch,
        tick: save.tick,
        x: save.position.0,
        y: save.position.1,
        z: save.position.2,
        yaw: save.yaw,
        saved: true,
        deeds: 0,
    };
    match (save.guest, save.released) {
        (true, _) => None,
        (false, None) => Some(KeeperCommand::Row(row)),
        (false, Some(session)) => Some(KeeperCommand::Release { client_id: save.client_id, session, row: Some(row) }),
    }
}
