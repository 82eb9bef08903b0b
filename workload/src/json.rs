//! Reading flat lines of JSON: one object, whose values other than numbers, strings and booleans are passed over.

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// A string, its escapes as they are written.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// Anything else.
    Other,
}

/// The members of an object, in order.
#[derive(Debug, Default)]
pub struct Object(Vec<(String, Value)>);

impl Object {
    /// Reads a line.
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut rest = Rest { line: line.trim().as_bytes(), at: 0 };
        rest.object().ok_or_else(|| format!("`{line}` is no JSON object at byte {}", rest.at))
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(member, _)| member == name).map(|(_, value)| value)
    }

    /// A number, if there is one of this name.
    pub fn number(&self, name: &str) -> Option<f64> {
        match self.get(name) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// A string, if there is one of this name.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether it says `true`.
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name) == Some(&Value::Flag(true))
    }
}

struct Rest<'a> {
    line: &'a [u8],
    at: usize,
}

impl Rest<'_> {
    fn next(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    fn blank(&mut self) {
        while self.next().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.blank();
        (self.next()? == byte).then(|| self.at += 1)
    }

    fn object(&mut self) -> Option<Object> {
        let mut members = Vec::new();
        self.take(b'{')?;
        if self.take(b'}').is_some() {
            return Some(Object(members));
        }
        loop {
            self.blank();
            let name = self.text()?;
            self.take(b':')?;
            members.push((name, self.value(0)?));
            if self.take(b',').is_none() {
                self.take(b'}')?;
                return Some(Object(members));
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        self.take(b'"')?;
        let start = self.at;
        while self.next()? != b'"' {
            self.at += if self.next()? == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        String::from_utf8(self.line[start..self.at - 1].to_vec()).ok()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.blank();
        match self.next()? {
            b'"' => self.text().map(Value::Text),
            open @ (b'{' | b'[') if depth < 32 => {
                self.at += 1;
                let close = if open == b'{' { b'}' } else { b']' };
                loop {
                    if self.take(close).is_some() {
                        return Some(Value::Other);
                    }
                    if self.take(b',').is_none() && self.take(b':').is_none() {
                        self.value(depth + 1)?;
                    }
                }
            }
            _ => {
                let start = self.at;
                while self.next().is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
                    self.at += 1;
                }
                match std::str::from_utf8(&self.line[start..self.at]).ok()? {
                    "true" => Some(Value::Flag(true)),
                    "false" => Some(Value::Flag(false)),
                    "null" => Some(Value::Other),
                    number => number.parse().ok().map(Value::Number),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_members_are_read_and_others_passed_over() {
        let line = r#" {"tool":"stock","a":-1.5e3,"n":null,"x":{"y":[1,{"z":"}"}],"tool":"no"},"ok":true, "last":7 } "#;
        let object = Object::parse(line).unwrap();
        assert_eq!((object.text("tool"), object.number("a")), (Some("stock"), Some(-1500.0)));
        assert_eq!(
            (object.number("last"), object.is_set("ok"), object.is_set("n")),
            (Some(7.0), true, false)
        );
        assert_eq!(Object::parse("{}").unwrap().number("a"), None);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for line in [
            "",
            "[]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":\"",
            "{\"a\":\"\\",
            "{\"a\":[1",
            "{\"a\":no}",
        ] {
            assert!(Object::parse(line).is_err(), "{line}");
        }
        assert!(Object::parse(&format!("{{\"a\":{}", "[".repeat(100_000))).is_err());
    }
}
