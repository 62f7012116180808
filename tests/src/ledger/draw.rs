//! Numbers that look drawn and are none: each is a function of a key, so that any part of a ledger can be made again alone.

use vestigo_model::Digest;

/// A stream of numbers that begins with a key (splitmix64).
#[derive(Debug, Clone)]
pub struct Draw(u64);

/// One key out of several: whoever names the same parts gets the same numbers.
#[must_use]
pub fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(0x5bd1_e995_9e37_79b9, |state, part| mix(state ^ mix(*part)))
}

const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Draw {
    /// The stream of the key.
    #[must_use]
    pub const fn new(key: u64) -> Self {
        Self(key)
    }

    /// Any number.
    pub const fn any(&mut self) -> u64 {
        let drawn = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        drawn
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let product = u128::from(self.any()) * u128::from(end);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// A number of nanoseconds from `from` to before `to`; `from` when there is none.
    pub fn between(&mut self, from: i64, to: i64) -> i64 {
        let span = u64::try_from(to.saturating_sub(from)).unwrap_or(0);
        from.saturating_add(i64::try_from(self.below(span)).unwrap_or(0))
    }

    /// From 0 to before 1.
    #[allow(clippy::cast_precision_loss)] // 53 bits fit.
    pub fn unit(&mut self) -> f64 {
        (self.any() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether something with this probability happens.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Log-normal with this median; `sigma` is the spread of the logarithm.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        // Box and Muller; the logarithm of zero must not be asked for.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        median * (sigma * radius * (std::f64::consts::TAU * self.unit()).cos()).exp()
    }
}

/// The whole part of a number that is known to be small and not negative.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // `as` saturates, which is what is wanted.
pub const fn whole(value: f64) -> u64 {
    value as u64
}

/// A port, or anything else of 16 bits.
#[must_use]
pub fn small(value: u64) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(0)
}

/// A byte.
#[must_use]
pub fn byte(value: u64) -> u8 {
    u8::try_from(value & 0xff).unwrap_or(0)
}

/// The text of a random UUID (version 4) of this key.
#[must_use]
pub fn uuid(key: u64) -> String {
    let (high, low) = (mix(key), mix(key ^ 0xa5a5_5a5a_0f0f_f0f0));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:x}{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        8 + (low >> 62),
        (low >> 48) & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

/// A digest of this key.
#[must_use]
pub fn digest(key: u64) -> Digest {
    Digest::of(&key.to_le_bytes())
}

/// Ranks with Zipf's law: a few are met all the time, most hardly ever.
#[derive(Debug, Clone)]
pub struct Zipf(Vec<f64>);

impl Zipf {
    /// Of so many ranks, with this exponent.
    #[must_use]
    pub fn new(ranks: u32, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=ranks).map(|rank| {
            sum += f64::from(rank).powf(-exponent);
            sum
        });
        let mut sums: Vec<f64> = sums.collect();
        sums.iter_mut().for_each(|part| *part /= sum);
        Self(sums)
    }

    /// A rank, from 0.
    pub fn draw(&self, draw: &mut Draw) -> usize {
        let wanted = draw.unit();
        self.0.partition_point(|sum| *sum <= wanted).min(self.0.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_same_key_gives_the_same_numbers() {
        let (mut one, mut other) = (Draw::new(key(&[1, 2])), Draw::new(key(&[1, 2])));
        assert!((0..100).all(|_| one.any() == other.any()));
        assert_ne!(key(&[1, 2]), key(&[2, 1]));
        assert!(uuid(7).parse::<vestigo_model::DomainUuid>().is_ok());
    }

    #[test]
    fn numbers_lie_where_they_should() {
        let mut draw = Draw::new(1);
        assert!((0..1000).all(|_| draw.below(7) < 7));
        assert_eq!((draw.below(0), draw.between(5, 5)), (0, 5));
        let zipf = Zipf::new(100, 1.1);
        let mut met = [0u32; 100];
        (0..10_000).for_each(|_| met[zipf.draw(&mut draw)] += 1);
        assert!(met[0] > 5 * met[20] && met[20] > 0, "{met:?}");
        let mut sizes: Vec<f64> = (0..1001).map(|_| draw.log_normal(100.0, 1.0)).collect();
        sizes.sort_by(f64::total_cmp);
        assert!((80.0..125.0).contains(&sizes[500]), "{}", sizes[500]);
    }
}
