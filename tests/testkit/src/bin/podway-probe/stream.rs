//! One socket that is kept: numbered messages go out at every interval, and each is expected back.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use podway_testkit::{Answer, Failure, Transport};

use crate::series::{Limit, Report, sleep_until};
use crate::tries::{Reply, Target, answer, failure, hear};

/// How often the receiver looks for messages whose time is up, and for the end.
const LOOK: Duration = Duration::from_millis(20);

/// Sends until the limit, or until a TCP connection ends; then waits for the messages under way.
pub(crate) fn stream(target: &Target, limit: Limit, report: Report) -> Result<()> {
    let (results, answers) = mpsc::channel();
    let stream = Stream::new(target.timeout, results);
    thread::scope(|scope| {
        scope.spawn(|| {
            let ended = match target.transport {
                Transport::Tcp => stream.over_tcp(target, &limit),
                Transport::Udp => stream.over_udp(target, &limit),
            };
            stream.close(ended.map_or_else(|error| failure(&error), |()| Failure::Timeout));
        });
        report.all(answers)
    })
}

/// The messages under way.
struct Stream {
    start: Instant,
    timeout: Duration,
    under_way: Mutex<UnderWay>,
    finished: AtomicBool,
}

struct UnderWay {
    sent: BTreeMap<u64, Instant>,
    results: Option<mpsc::Sender<Answer>>,
}

impl Stream {
    fn new(timeout: Duration, results: mpsc::Sender<Answer>) -> Self {
        let under_way = Mutex::new(UnderWay { sent: BTreeMap::new(), results: Some(results) });
        Self { start: Instant::now(), timeout, under_way, finished: AtomicBool::new(false) }
    }

    fn over_tcp(&self, target: &Target, limit: &Limit) -> io::Result<()> {
        // Number 0 stands for the connection itself.
        self.sent(0);
        let (reader, reply) = target.connect()?;
        self.answered(0, Ok(reply.clone()));
        let mut writer = reader.get_ref().try_clone()?;
        reader.get_ref().set_read_timeout(Some(LOOK))?;
        thread::scope(|scope| {
            let receiver = scope.spawn(|| self.read_lines(reader, &reply));
            let sent = self.send_all(limit, |text| writer.write_all(text.as_bytes()));
            let received = receiver.join().unwrap_or_else(|_| Err(io::Error::other("the receiver panicked")));
            received.and(sent)
        })
    }

    fn over_udp(&self, target: &Target, limit: &Limit) -> io::Result<()> {
        // Number 0 stands for the socket itself, so that one that cannot be opened is reported.
        self.sent(0);
        let socket = target.socket()?;
        self.dropped(0);
        socket.set_read_timeout(Some(LOOK))?;
        thread::scope(|scope| {
            scope.spawn(|| self.hear_all(&socket));
            self.send_all(limit, |text| {
                // An error of a datagram is that datagram's; the socket goes on.
                target.say(&socket, text).or_else(|error| {
                    self.latest_failed(failure(&error));
                    Ok(())
                })
            })
        })
    }

    /// Sends numbers from 1 on until the limit, or until the receiver has given up.
    fn send_all(&self, limit: &Limit, mut send: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
        let mut next = Instant::now();
        let mut sent = Ok(());
        for number in 1.. {
            if limit.is_reached() || self.finished.load(Ordering::Relaxed) || sent.is_err() {
                break;
            }
            self.sent(number);
            sent = send(&format!("{number}\n"));
            next += limit.interval;
            sleep_until(next);
        }
        self.finished.store(true, Ordering::Relaxed);
        sent
    }

    fn read_lines(&self, mut reader: BufReader<TcpStream>, reply: &Reply) -> io::Result<()> {
        let mut line = Vec::new();
        let ended = loop {
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => break Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    self.answered(number(&String::from_utf8_lossy(&line)), Ok(reply.clone()));
                    line.clear();
                }
                Err(error) if !is_pause(&error) => break Err(error),
                Err(_) => {}
            }
            if self.is_over() {
                break Ok(());
            }
        };
        self.finished.store(true, Ordering::Relaxed);
        ended
    }

    fn hear_all(&self, socket: &UdpSocket) {
        while !self.is_over() {
            match hear(socket) {
                Ok(reply) => self.answered(number(reply.0.echo.as_deref().unwrap_or_default()), Ok(reply)),
                Err(error) if !is_pause(&error) => self.latest_failed(failure(&error)),
                Err(_) => {}
            }
        }
    }

    fn sent(&self, number: u64) {
        self.lock().sent.insert(number, Instant::now());
    }

    fn dropped(&self, number: u64) {
        self.lock().sent.remove(&number);
    }

    /// Reports a message, unless it has been reported before.
    fn answered(&self, number: u64, reply: std::result::Result<Reply, Failure>) {
        let mut under_way = self.lock();
        if let Some(sent) = under_way.sent.remove(&number)
            && let Some(results) = &under_way.results
        {
            // The receiver is gone only when the report failed.
            let _ = results.send(answer(sent.duration_since(self.start), sent.elapsed(), reply));
        }
    }

    fn latest_failed(&self, failure: Failure) {
        let latest = self.lock().sent.keys().next_back().copied();
        if let Some(number) = latest {
            self.answered(number, Err(failure));
        }
    }

    /// Gives up messages whose time is up; says whether sending has ended and nothing is under way.
    fn is_over(&self) -> bool {
        let expired = |sent: &Instant| sent.elapsed() >= self.timeout;
        let late: Vec<u64> =
            self.lock().sent.iter().filter(|(_, sent)| expired(sent)).map(|(n, _)| *n).collect();
        for number in late {
            self.answered(number, Err(Failure::Timeout));
        }
        self.finished.load(Ordering::Relaxed) && self.lock().sent.is_empty()
    }

    /// Reports what is still under way as failed, and ends the report.
    fn close(&self, failure: Failure) {
        let left: Vec<u64> = self.lock().sent.keys().copied().collect();
        for number in left {
            self.answered(number, Err(failure.clone()));
        }
        self.lock().results = None;
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of a message; 0, which is never under way by then, for anything else.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Whether nothing came for now.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
