//! Where the bots of a scenario live, from what the server says about its land.
//!
//! Owns nothing. Promises: a crossing is open ground from end to end; the same land and seam give the same places.

use std::sync::Arc;

use ringshard::realm::bots::{Crossing, Haunt, March};
use ringshard::wire::messages::{Seam, Welcome};
use ringshard::wire::units::{FINE_PER_M, FINE_SHIFT, GRID_PER_M};
use ringshard::world::land::{LAND_M, Land};

/// What the bots do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Scenario {
    /// Everybody wanders over all of the land.
    Spread,
    /// Everybody in one disc of 30 m.
    Crowd,
    /// Everybody crosses the border between two shards, all the time.
    Seam,
    /// A crowd walks from one shard's land to another's and stays there.
    March,
    /// Pairs that stay within reach of each other on a border (where there is one) and trade, mail, drop and pick up.
    Trade,
}

/// Radius of the crowd's disc, metres.
const CROWD_RADIUS_M: i32 = 15;
/// How far a bot goes to each side of the seam, metres.
const REACH_M: std::ops::RangeInclusive<i32> = 8..=16;
/// How far a pair that trades goes to each side of the seam, metres: some stay on both sides of it, some change sides, and
/// all come within the reach of a trade.
const PAIR_REACH_M: std::ops::RangeInclusive<i32> = 3..=8;
/// Radius of the disc of a pair where there is no seam, metres.
const PAIR_RADIUS_M: i32 = 3;
/// Discs of pairs in a row, and the metres between two.
const PAIR_DISCS: i32 = 5;
const PAIR_DISC_M: i32 = 4;
/// Radius of the crowd that marches, metres: it stands on about seven cells.
const MARCH_RADIUS_M: i32 = 64;
/// How far from the seam its middle begins and ends, metres: all of it then stands on one side.
const MARCH_REACH_M: i32 = 80;
/// Seconds of a player's before it marches.
const MARCH_BEGIN_S: u32 = 5;
/// Seconds of the march: 4 m/s, and players run 5.
const MARCH_S: u32 = 40;
/// Seconds after the last join at which the crowd has come to a stop.
pub const MARCH_STOP_S: u32 = MARCH_BEGIN_S + MARCH_S;
/// Ground that must be open beyond a bot's reach, and to its left and right, metres.
const SPARE_M: i32 = 3;

/// What a land may lack.
pub const NO_DISC: &str = "the land has no open disc of 30 m";

/// The places of a scenario on one land.
pub struct Places {
    /// The ground.
    pub land: Arc<Land>,
    scenario: Scenario,
    centre: (i32, i32),
    crossings: Vec<Crossing>,
    march: Option<March>,
}

impl Places {
    /// Finds them; an error says what the server lacks.
    pub fn find(scenario: Scenario, welcome: &Welcome) -> Result<Places, String> {
        let land = Arc::new(Land::new(welcome.land_seed));
        let mut places = Places { land, scenario, centre: (0, 0), crossings: Vec::new(), march: None };
        match scenario {
            Scenario::Spread => (),
            Scenario::Trade if welcome.seam.is_none() => places.centre = open_disc(&places.land).ok_or(NO_DISC)?,
            Scenario::Crowd => places.centre = open_disc(&places.land).ok_or(NO_DISC)?,
            Scenario::Seam | Scenario::Trade | Scenario::March => {
                let Some(seam) = welcome.seam else {
                    let text = "the server names no seam: start it with --dev and at least --shards 2";
                    return Err(text.to_owned());
                };
                places.march = (scenario == Scenario::March).then(|| march(&places.land, seam));
                places.crossings = crossings(&places.land, seam);
                if places.crossings.is_empty() {
                    return Err("the seam that the server names cannot be crossed anywhere".to_owned());
                }
            }
        }
        Ok(places)
    }

    /// Where the `number`-th of `bots` bots lives.
    pub fn haunt(&self, number: u64, bots: u64) -> Haunt {
        match self.scenario {
            Scenario::Spread => Haunt::Land,
            Scenario::Crowd => Haunt::Disc { centre: self.centre, radius: CROWD_RADIUS_M * GRID_PER_M },
            Scenario::Seam => {
                let at = u128::from(number) * self.crossings.len() as u128 / u128::from(bots.max(1));
                Haunt::Border(self.crossings[at as usize % self.crossings.len()])
            }
            Scenario::March => Haunt::March(self.march.expect("it was found with the seam")),
            Scenario::Trade => self.pair_haunt(number / 2, bots.div_ceil(2)),
        }
    }

    /// Where both players of a pair live.
    fn pair_haunt(&self, pair: u64, pairs: u64) -> Haunt {
        if self.crossings.is_empty() {
            let at = (pair % (PAIR_DISCS * PAIR_DISCS) as u64) as i32;
            let offset = |nth: i32| (nth - PAIR_DISCS / 2) * PAIR_DISC_M * GRID_PER_M;
            let centre = (self.centre.0 + offset(at % PAIR_DISCS), self.centre.1 + offset(at / PAIR_DISCS));
            return Haunt::Disc { centre, radius: PAIR_RADIUS_M * GRID_PER_M };
        }
        let at = u128::from(pair) * self.crossings.len() as u128 / u128::from(pairs.max(1));
        let crossing = self.crossings[at as usize % self.crossings.len()];
        let reaches = (PAIR_REACH_M.end() - PAIR_REACH_M.start() + 1) as u64;
        let reach = PAIR_REACH_M.start() + (pair % reaches) as i32;
        Haunt::Border(Crossing { reach: reach * GRID_PER_M, ..crossing })
    }
}

fn is_open(land: &Land, (x, y): (i32, i32)) -> bool {
    !land.is_blocked(x << FINE_SHIFT, y << FINE_SHIFT)
}

/// Middle of the open disc that is nearest to the land's middle, 1/256 m.
pub fn open_disc(land: &Land) -> Option<(i32, i32)> {
    let middle = LAND_M / 2 * FINE_PER_M;
    let radius = CROWD_RADIUS_M + SPARE_M;
    let open = |(cx, cy): (i32, i32)| {
        (-radius..=radius).all(|dy| {
            let mut row = (-radius..=radius).filter(|dx| dx * dx + dy * dy <= radius * radius);
            row.all(|dx| !land.is_blocked(cx + dx * FINE_PER_M, cy + dy * FINE_PER_M))
        })
    };
    let step = 8 * FINE_PER_M;
    let square = |ring: i32| {
        let edge = move |(dx, dy): &(i32, i32)| dx.abs().max(dy.abs()) == ring;
        (-ring..=ring).flat_map(move |dy| (-ring..=ring).map(move |dx| (dx, dy))).filter(edge)
    };
    let centres = (0..LAND_M / 32).flat_map(square).map(|(dx, dy)| (middle + dx * step, middle + dy * step));
    centres.into_iter().find(|&centre| open(centre)).map(|(x, y)| (x >> FINE_SHIFT, y >> FINE_SHIFT))
}

/// The march over the seam that has most open ground.
fn march(land: &Land, seam: Seam) -> March {
    let upright = seam.x0 == seam.x1;
    let (line, from, to) = if upright { (seam.x0, seam.y0, seam.y1) } else { (seam.y0, seam.x0, seam.x1) };
    let far = MARCH_REACH_M + MARCH_RADIUS_M;
    let open = |along: i32| {
        let metres = |reach: i32| (-reach..=reach).step_by(8);
        let lanes =
            metres(MARCH_RADIUS_M).map(|aside| Crossing { upright, line, along: along + aside * GRID_PER_M, reach: 0 });
        lanes
            .flat_map(|lane| metres(far).map(move |across| lane.position(across * GRID_PER_M)))
            .filter(|&at| is_open(land, at))
            .count()
    };
    let spare = MARCH_RADIUS_M * GRID_PER_M;
    let (from, to) = (from.min(to) + spare, from.max(to) - spare);
    let along = (from..=to).step_by((32 * GRID_PER_M) as usize).max_by_key(|&along| open(along));
    let crossing = Crossing { upright, line, along: along.unwrap_or((from + to) / 2), reach: 0 };
    let end = MARCH_REACH_M * GRID_PER_M;
    March {
        from: crossing.position(-end),
        to: crossing.position(end),
        radius: MARCH_RADIUS_M * GRID_PER_M,
        begin_tick: MARCH_BEGIN_S * 60,
        ticks: MARCH_S * 60,
    }
}

/// Every metre of the seam where a bot can go back and forth, with reaches that differ from one to the next.
pub fn crossings(land: &Land, seam: Seam) -> Vec<Crossing> {
    let upright = seam.x0 == seam.x1;
    let (line, from, to) = if upright { (seam.x0, seam.y0, seam.y1) } else { (seam.y0, seam.x0, seam.x1) };
    let (from, to) = (from.min(to), from.max(to));
    let metres = (from / GRID_PER_M..=to / GRID_PER_M).map(|metre| metre * GRID_PER_M);
    let crossing = |(at, along): (usize, i32)| {
        let reach = REACH_M.start() + at as i32 * 5 % (REACH_M.end() - REACH_M.start() + 1);
        Crossing { upright, line, along, reach: reach * GRID_PER_M }
    };
    let open = |crossing: &Crossing| {
        let far = crossing.reach / GRID_PER_M + SPARE_M;
        (-SPARE_M..=SPARE_M).all(|aside| {
            let lane = Crossing { along: crossing.along + aside * GRID_PER_M, ..*crossing };
            (-far..=far).all(|across| is_open(land, lane.position(across * GRID_PER_M)))
        })
    };
    metres.enumerate().map(crossing).filter(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringshard::world::cut::CutMap;

    fn welcome(shards: usize) -> Welcome {
        let seam = CutMap::equal(shards).seam(&Land::new(42));
        let seam = seam.map(|seam| Seam { x0: seam.from.0, y0: seam.from.1, x1: seam.to.0, y1: seam.to.1 });
        Welcome {
            entity: ringshard::wire::ids::EntityId::NONE,
            client_id: 1,
            tick: 1,
            tick_hz: 60,
            send_hz: 30,
            land_seed: 42,
            land_size_m: LAND_M as u32,
            cell_size_m: 64,
            enter_radius_m: 96,
            leave_radius_m: 128,
            seam,
            version: String::new(),
            order: 0,
        }
    }

    #[test]
    fn crossings_cover_the_seam_and_stay_near_it() {
        let places = Places::find(Scenario::Seam, &welcome(2)).expect("two shards have a seam");
        assert!(places.crossings.len() > 100, "{} metres can be crossed", places.crossings.len());
        let haunts: Vec<Haunt> = (0..50).map(|number| places.haunt(number, 50)).collect();
        let along = |haunt: &Haunt| match haunt {
            Haunt::Border(crossing) => crossing.along,
            other => panic!("{other:?} is no border"),
        };
        assert!(haunts.windows(2).all(|pair| along(&pair[0]) < along(&pair[1])), "50 bots stand apart");
        let reach = |crossing: &Crossing| crossing.reach / GRID_PER_M;
        assert!(places.crossings.iter().all(|crossing| REACH_M.contains(&reach(crossing))));
    }

    #[test]
    fn pairs_share_a_place_with_and_without_a_seam() {
        for shards in [1, 2] {
            let places = Places::find(Scenario::Trade, &welcome(shards)).expect("there is a place to trade");
            for number in 0..100 {
                let (own, partner) = (places.haunt(number, 200), places.haunt(number ^ 1, 200));
                assert_eq!(own, partner);
                match own {
                    Haunt::Border(crossing) => assert!(PAIR_REACH_M.contains(&(crossing.reach / GRID_PER_M))),
                    Haunt::Disc { centre: (x, y), radius } => {
                        let far = |at: i32, middle: i32| (at - middle).abs() + radius;
                        assert!(far(x, places.centre.0).max(far(y, places.centre.1)) <= CROWD_RADIUS_M * GRID_PER_M);
                    }
                    Haunt::Land | Haunt::March(_) => panic!("a pair would never meet"),
                }
            }
        }
    }

    #[test]
    fn a_march_leads_from_one_owner_to_another() {
        let places = Places::find(Scenario::March, &welcome(2)).expect("two shards have a seam");
        let Haunt::March(march) = places.haunt(3, 10) else { panic!("it is no march") };
        let cut = CutMap::equal(2);
        let owner =
            |(x, y): (i32, i32)| cut.owner(ringshard::wire::ids::CellKey::of_fine(x << FINE_SHIFT, y << FINE_SHIFT));
        assert_eq!((march.centre(0), march.centre(u32::MAX)), (march.from, march.to));
        assert_ne!(owner(march.from), owner(march.to));
        let step = |tick: u32| {
            let (a, b) = (march.centre(tick), march.centre(tick + 60));
            (b.0 - a.0).abs() + (b.1 - a.1).abs()
        };
        assert!(step(0) == 0 && step(MARCH_STOP_S * 60) == 0);
        assert!((1..5 * GRID_PER_M).contains(&step(20 * 60)), "players run 5 m/s: they can follow");
    }

    #[test]
    fn one_shard_has_no_seam() {
        let error = Places::find(Scenario::Seam, &welcome(1)).err().expect("there is none");
        assert!(error.contains("--shards 2"), "{error}");
    }

    #[test]
    fn the_crowd_stands_on_open_ground_near_the_middle() {
        let places = Places::find(Scenario::Crowd, &welcome(1)).expect("the land is mostly open");
        let (x, y) = places.centre;
        let middle = LAND_M / 2 * GRID_PER_M;
        assert!((x - middle).abs().max((y - middle).abs()) < 400 * GRID_PER_M, "{x} {y}");
        for (dx, dy) in [(0, 0), (15, 0), (-15, 0), (0, 15), (0, -15), (10, 10)] {
            assert!(is_open(&places.land, (x + dx * GRID_PER_M, y + dy * GRID_PER_M)));
        }
    }
}
