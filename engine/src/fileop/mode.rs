use super::{FileError, Result};

/// How a copy changes permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// These bits, whatever the source has.
    Octal(u32),
    /// Symbolic clauses, applied to each file's own bits.
    Symbolic(Vec<Clause>),
}

/// One `who op permissions` step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    who: u32,
    op: char,
    permissions: String,
}

impl ModeChange {
    /// Parses octal digits, or clauses like `u+rwX,go-w`.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = || FileError::InvalidMode { mode: text.to_owned() };
        if !text.is_empty() && text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| invalid())?;
            return if bits <= 0o7777 { Ok(Self::Octal(bits)) } else { Err(invalid()) };
        }
        let mut clauses = Vec::new();
        for clause in text.split(',') {
            let split = clause.find(['+', '-', '=']).ok_or_else(invalid)?;
            let mut who = 0;
            for c in clause[..split].chars() {
                who |= match c {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o1007,
                    'a' => 0o7777,
                    _ => return Err(invalid()),
                };
            }
            if who == 0 {
                who = 0o7777;
            }
            let mut rest = &clause[split..];
            while !rest.is_empty() {
                let op = rest.chars().next().ok_or_else(invalid)?;
                let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |e| e + 1);
                let permissions = &rest[1..end];
                if !permissions.chars().all(|c| "rwxXstugo".contains(c)) {
                    return Err(invalid());
                }
                clauses.push(Clause { who, op, permissions: permissions.to_owned() });
                rest = &rest[end..];
            }
        }
        Ok(Self::Symbolic(clauses))
    }

    /// The bits of a file that had `mode`.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Self::Octal(bits) => *bits,
            Self::Symbolic(clauses) => clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_dir)),
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let mut bits = 0;
        for c in self.permissions.chars() {
            bits |= match c {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                's' => 0o6000,
                't' => 0o1000,
                'u' => ((mode >> 6) & 7) * 0o111,
                'g' => ((mode >> 3) & 7) * 0o111,
                'o' => (mode & 7) * 0o111,
                _ => 0,
            };
        }
        let bits = bits & self.who;
        match self.op {
            '+' => mode | bits,
            '-' => mode & !bits,
            _ => {
                (mode & !(self.who & 0o777))
                    & !(if self.permissions.contains(['s', 't']) { self.who & 0o7000 } else { 0 })
                    | bits
            }
        }
    }
}
