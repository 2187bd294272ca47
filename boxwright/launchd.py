"""A `Service` as a LaunchDaemon or LaunchAgent of macOS. Pure functions, and the program that stands before each.

launchd knows no start order, no readiness, no reload, no file of secrets and no record of what a process was started
with. STARTER adds on the box what must be there at every start, whoever asks for it; the rest is asked by
boxwright/operations/launchd.py. The sandbox of systemd has no counterpart: docs/architecture.md says what is lost.
"""

import plistlib
import re
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Any

from boxwright.services import Service

DAEMONS = "/Library/LaunchDaemons"
# Loaded into the session of everybody who signs in: STARTER takes it out again where it is not the user's.
AGENTS = "/Library/LaunchAgents"
# Emptied by macOS at each boot. Only root may look into it, as with systemd.
STAMPS = "/var/run/boxwright"
LOGS = "/var/log/boxwright"
# Below it the starter of a LaunchAgent, which is not root, notes what STAMPS has of a daemon, in a folder of its user's
# for each. Notes name their process, so that those from before a boot tell nothing.
AGENTS_NOTES = "/var/lib/boxwright/agents"
# Below it each service with credentials has a folder that nobody else may enter; it is made anew at each start.
CREDENTIALS = "/var/run/boxwright-credentials"
# A file beside a plist might be taken for one more by launchd: what is kept for the way back is elsewhere.
KEPT = "/var/lib/boxwright/launchd"
# Not below /usr/local, which belongs to a person where Homebrew for Intel processors once was: root runs it.
STARTER_PATH = "/opt/boxwright/launchd/start"

# Where the folders of a service are, by the field of `Service` that names them.
STATE, RUNTIME, OWN_LOGS = "/var/lib/boxwright", "/var/run", "/var/log"

PATH = "/usr/bin:/bin:/usr/sbin:/sbin"

# Perl is the one program of a stock macOS that can give up root and become another program within the same process:
# `su` and `sudo` stay as parents, so that launchd would watch them in place of the service, and `launchctl asuser`
# gives up nothing. UserName in the plist would come too early: what is done here first needs root.
STARTER = (
    r"""#!/usr/bin/perl
# Written by boxwright. Stands before the services of this Mac:
#   start OPTION VALUE ... -- PROGRAM ...   makes folders, waits, notes what is there, and becomes the program
#                                           (root starts it, or, with --notes, launchd for whoever has signed in)
#   call OPTION VALUE ... -- PROGRAM ...    runs a program as the service would: its user, its environment
#   stamps FILE ...                         prints a line for each that changes when the file does
#   rotate BYTES KEEP FOLDER                shortens logs
use strict;
use warnings;
no warnings 'exec';
use POSIX ();
use Socket ();

my $stamps = '@STAMPS@';
$| = 1;

# Whatever the PATH of a service is.
sub tool { local $ENV{PATH} = '/usr/bin:/bin:/usr/sbin:/sbin'; return system(@_) == 0 }

# 78 is EX_CONFIG, by which launchd itself says that something cannot be started.
sub fail { print STDERR "boxwright: @_\n"; POSIX::_exit(78) }

# Files of more than 64 MiB, and folders, are not read but told by size, time and inode.
sub stamp {
    my ($path) = @_;
    my @found = stat $path or return "absent  $path";
    return "@found[7, 9, 1]  $path" if !-f _ || $found[7] > 67108864;
    local $ENV{PATH} = '/usr/bin:/bin';
    open my $sum, '-|', 'shasum', '-a', '256', $path or return "unread  $path";
    my $line = <$sum>;
    close $sum;
    # A backslash before the digest tells that the name is written in another way.
    return defined $line && $line =~ /^\\?([0-9a-f]{64}) / ? "$1  $path" : "unread  $path";
}

# The same for a process all its life, and for no other one.
sub invocation {
    local ($ENV{LC_ALL}, $ENV{TZ}) = ('C', 'UTC0');
    # A copy: $$ itself would be read in the child, whose number is another.
    my $me = "$$";
    open my $ps, '-|', '/bin/ps', '-o', 'lstart=', '-p', $me or fail("cannot ask ps: $!");
    my $start = join '_', split ' ', <$ps> // '';
    close $ps;
    return "$me\@$start";
}

sub record {
    my ($path, $first, @files) = @_;
    open my $out, '>', "$path.new" or fail("cannot note what $path was started with: $!");
    print $out map { "$_\n" } $first, map { stamp($_) } @files;
    close $out or fail("cannot write $path: $!");
    rename "$path.new", $path or fail("cannot write $path: $!");
}

# As systemd reads it, without the continuation of lines. Values are never printed.
sub environment {
    my ($path) = @_;
    open my $in, '<', $path or fail("cannot read the environment $path: $!");
    while (my $line = <$in>) {
        next if $line =~ /^\s*(?:[#;].*)?$/;
        my ($name, $value) = $line =~ /^\s*([A-Za-z_]\w*)=(.*?)\s*$/ or fail("$path, line $.: not NAME=VALUE");
        if ($value =~ /^"((?:[^"\\]|\\.)*)"$/) { ($value = $1) =~ s/\\(["\\`\$])/$1/g }
        elsif ($value =~ /^'([^']*)'$/) { $value = $1 }
        elsif ($value =~ /^["']/) { fail("$path, line $.: a quote that does not end") }
        $ENV{$name} = $value;
    }
    close $in;
}

# An address of one's own can be bound to; the kernel chooses the port.
sub bindable {
    my ($address) = @_;
    my $four = Socket::inet_pton(Socket::AF_INET(), $address);
    my $six = $four ? undef : Socket::inet_pton(Socket::AF_INET6(), $address);
    fail("not an address: $address") if !$four && !$six;
    socket my $socket, $four ? Socket::PF_INET() : Socket::PF_INET6(), Socket::SOCK_DGRAM(), 0 or return 0;
    return bind $socket, $four ? Socket::pack_sockaddr_in(0, $four) : Socket::pack_sockaddr_in6(0, $six);
}

sub wait_for {
    my ($what, $there) = @_;
    return if $there->();
    print STDERR "boxwright: waits for $what\n";
    select undef, undef, undef, 0.2 until $there->();
}

# Without a group it is the user's own, and without a home the environment has nothing of the user's either.
sub account {
    my ($user, $group) = @_;
    my ($uid, $gid, $home) = (getpwnam $user)[2, 3, 7];
    fail("there is no user $user") if !defined $uid;
    if ($group ne '') { $gid = getgrnam $group // fail("there is no group $group") }
    @ENV{qw(HOME USER LOGNAME)} = ($home, $user, $user) if !defined $ENV{HOME};
    return ($uid, $gid);
}

# Like systemd: the service's, and closed to others; handed over when the account was made anew.
sub folder {
    my ($path, $uid, $gid) = @_;
    (my $above = $path) =~ s{/[^/]+$}{};
    # Others have folders there too.
    my $mask = umask 0022;
    -d $above || tool('mkdir', '-p', $above) or fail("cannot make $above");
    umask $mask;
    mkdir $path, 0700 or fail("cannot make the folder $path: $!") if !-e $path && !-l $path;
    my @found = lstat $path;
    fail("$path should be a folder") if !-d _;
    if ($found[4] != $uid || $found[5] != $gid) {
        tool('chown', '-R', '-h', "$uid:$gid", $path) or fail("cannot give $path to its user");
    }
    chmod 0700, $path if ($found[2] & 07777) != 0700;
}

# Copies of files that root alone reads, for the service alone. The folder is root's until all of them are in it, so
# that nobody can have put a link there.
sub credentials {
    my ($path, $uid, $gid, @pairs) = @_;
    (my $above = $path) =~ s{/[^/]+$}{};
    tool('mkdir', '-p', '-m', '0711', $above) or fail("cannot make $above");
    tool('rm', '-rf', $path) or fail("cannot remove what was in $path");
    mkdir $path, 0700 or fail("cannot make the folder $path: $!");
    my $mask = umask 0077;
    for my $pair (@pairs) {
        my ($name, $file) = split /:/, $pair, 2;
        open my $in, '<', $file or fail("cannot read the credential $file: $!");
        open my $out, '>', "$path/$name" or fail("cannot write the credential $name: $!");
        local $/;
        print $out scalar <$in>;
        close $out or fail("cannot write the credential $name: $!");
        chown $uid, $gid, "$path/$name" or fail("cannot give the credential $name away: $!");
        chmod 0400, "$path/$name";
    }
    umask $mask;
    chown $uid, $gid, $path or fail("cannot give $path away: $!");
}

# For good, and in this very process. Perl tells by $! alone that the list of groups could not be set.
sub become {
    my ($uid, $gid) = @_;
    return if $< == $uid && $> == $uid;
    $! = 0;
    $) = "$gid $gid";
    fail("cannot leave root's groups: $!") if $!;
    POSIX::setgid($gid) && POSIX::setuid($uid) or fail("cannot give up root: $!");
    fail('root was not given up') if $< != $uid || $> != $uid || $( + 0 != $gid || $) + 0 != $gid || POSIX::setuid(0);
}

sub options {
    my %one = map { $_ => '' } qw(name identity user group environment address main-pid seconds notes log);
    my %many = map { $_ => [] } qw(file folder reads loads credential);
    while (@_ && $_[0] ne '--') {
        my ($key, $value) = splice @_, 0, 2;
        $key =~ s/^--//;
        fail("$key has no value") if !defined $value;
        if (exists $many{$key}) { push @{ $many{$key} }, $value }
        elsif (exists $one{$key}) { $one{$key} = $value }
        else { fail("an option that is not known: $key") }
    }
    shift;
    fail('no program is named') if !@_;
    return (\%one, \%many, @_);
}

sub start {
    my ($one, $many, @program) = options(@_);
    my ($uid, $gid) = account(@$one{qw(user group)});
    if ($one->{notes}) {
        # launchd loads what is for one user into the session of each.
        if ($< != $uid) {
            exec '/bin/launchctl', 'bootout', "gui/$</boxwright.$one->{name}";
            fail("cannot leave the session of user $<: $!");
        }
        $stamps = $one->{notes};
    }
    if ($one->{log}) {
        open STDOUT, '>>', $one->{log} or fail("cannot write $one->{log}: $!");
        open STDERR, '>&', \*STDOUT or fail("cannot write $one->{log}: $!");
    }
    folder($_, $uid, $gid) for @{ $many->{folder} };
    wait_for("the address $one->{address}", sub { bindable($one->{address}) }) if $one->{address};
    for my $path (@{ $many->{file} }) { wait_for($path, sub { -e $path }) }
    if ($one->{identity}) {
        my $mask = umask 0077;
        tool('mkdir', '-p', $stamps) or fail("cannot make $stamps");
        my $first = invocation() . " $one->{identity}";
        my $path = "$stamps/$one->{name}";
        unlink "$path.loading";
        record("$path.loaded", $first, @{ $many->{loads} }) if @{ $many->{loads} };
        record("$path.started", $first, @{ $many->{reads} });
        umask $mask;
    }
    credentials($ENV{CREDENTIALS_DIRECTORY}, $uid, $gid, @{ $many->{credential} }) if @{ $many->{credential} };
    environment($one->{environment}) if $one->{environment};
    become($uid, $gid);
    exec { $program[0] } @program or fail("cannot start $program[0]: $!");
}

# Ends with what it calls; after so many seconds it ends that, with all that it has started.
sub call {
    my ($one, undef, @program) = options(@_);
    my ($uid, $gid) = account(@$one{qw(user group)});
    my $child = fork // fail("cannot begin a process: $!");
    if (!$child) {
        setpgrp;
        environment($one->{environment}) if $one->{environment};
        $ENV{MAINPID} = $one->{'main-pid'} if $one->{'main-pid'};
        become($uid, $gid);
        exec { $program[0] } @program or fail("cannot start $program[0]: $!");
    }
    my $end = sub {
        kill 'KILL', -$child, $child;
        print STDERR "boxwright: timed out after $one->{seconds} s\n" if $_[0] eq 'ALRM';
        POSIX::_exit(124);
    };
    $SIG{$_} = $end for qw(ALRM HUP INT TERM);
    alarm $one->{seconds} if $one->{seconds};
    waitpid $child, 0;
    my $status = $?;
    # What it left behind must not hold the output open.
    kill 'KILL', -$child;
    POSIX::_exit($status & 127 ? 128 + ($status & 127) : $status >> 8);
}

# In place: launchd and the programs append to a log that they opened once, and would go on writing to a renamed one.
sub rotate {
    my ($bytes, $keep, $folder) = @_;
    umask 0027;
    for my $log (glob "$folder/*/*.log") {
        next if -l $log || (-s $log // 0) <= $bytes;
        for my $number (reverse 1 .. $keep - 1) {
            rename "$log." . ($number - 1), "$log.$number" if -e "$log." . ($number - 1);
        }
        # A full disk is a reason to empty it, not one to keep it.
        if (!tool('cp', '-p', $log, "$log.0")) { unlink "$log.0" }
        truncate $log, 0 or fail("cannot shorten $log: $!");
    }
}

my $what = shift // '';
if ($what eq 'start') { start(@ARGV) }
elsif ($what eq 'call') { call(@ARGV) }
elsif ($what eq 'stamps') { print stamp($_), "\n" for @ARGV }
elsif ($what eq 'rotate') { rotate(@ARGV) }
else { fail("start, call, stamps or rotate?") }
"""
).replace("@STAMPS@", STAMPS)

# newsyslog renames a log and makes a new one. A process of launchd goes on writing to the renamed file, which then has
# no bound, until it is restarted, which for an engine takes minutes; and one bad line of anybody's stops all rotation.
# So a log is copied and emptied in place. What is written to stays below this size and ten minutes of output more.
LOG_BYTES = 10 * 2**20
LOG_KEEP = 5
ROTATION = Service(
    name="logs",
    description="Bounds the logs of boxwright's services",
    command=(STARTER_PATH, "rotate", str(LOG_BYTES), str(LOG_KEEP), LOGS),
    user="root",
    group="wheel",
    schedule="*:0/10",
)

# Lines of systemd's section [Service]: what launchd has in their place, or why nothing is lost without them.
_LIMITS = {"LimitNOFILE": "NumberOfFiles", "LimitNPROC": "NumberOfProcesses", "LimitMEMLOCK": "MemoryLock"}
_NEEDLESS = {
    "KillMode": "launchd ends the whole process group after the process itself",
    "SupplementaryGroups": "the groups of Linux's devices; a Mac's graphics are open to every process",
}

# What a launchd job ended with, for a person. Numbers as `launchctl print` shows them; 78 has a name there.
EXITS: Mapping[str, str] = {
    "78*": "78 EX_CONFIG: it could not even be started: the program is missing or not executable, its user or a folder "
    "does not exist, or its log cannot be written",
    "126*": "126: the program was found and could not be run",
    "127*": "127: the program was not found",
    "9 | 9:* | *SIGKILL*": "ended by SIGKILL: by hand, or for want of memory",
    "*CODESIGNING*": "killed for its code signature: the program's file was overwritten in place; put a new file there "
    "and rename it",
    "*JETSAM*": "ended by macOS for want of memory",
}

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WORDS = {
    "hourly": "*:00",
    "daily": "*-*-* 00:00",
    "weekly": "mon 00:00",
    "monthly": "*-*-01 00:00",
}


def label(service: Service | str) -> str:
    """The name by which launchd knows it."""
    return f"boxwright.{service}"


def plist_path(service: Service | str) -> str:
    """Where its definition is kept on the box; of a name it is that of a LaunchDaemon."""
    agent = isinstance(service, Service) and service.agent
    return f"{AGENTS if agent else DAEMONS}/{label(service)}.plist"


def session(service: Service) -> str:
    """The user in whose session it runs; empty for a LaunchDaemon."""
    return service.user if service.agent else ""


def notes(service: Service | str, session: str) -> str:
    """Where it is noted what its process was started with: this, and an ending."""
    return f"{AGENTS_NOTES}/{service}/{service}" if session else f"{STAMPS}/{service}"


def log_path(service: Service | str) -> str:
    """Where all that it prints goes."""
    return f"{LOGS}/{service}/{service}.log"


def _user_and_group(service: Service) -> tuple[str, str]:
    user, group = service.user, service.group or service.user
    if service.agent:
        if user in ("", "root") or user.startswith("_"):
            raise ValueError(f"the service {service.name} is a LaunchAgent of {user or 'nobody'}, who never signs in")
        return user, service.group
    if not user:
        raise ValueError(
            f"the service {service.name} names no user: macOS has no users that exist only while a service runs"
        )
    if user != "root" and not user.startswith("_"):
        raise ValueError(f"the service {service.name} runs as {user}: on a Mac accounts of services begin with `_`")
    return user, "wheel" if group == "root" else group


def folders(service: Service) -> tuple[str, ...]:
    """The folders that are made for the service's user at each start, mode 0700."""
    pairs = ((STATE, service.state_directory), (RUNTIME, service.runtime_directory), (OWN_LOGS, service.logs_directory))
    return tuple(f"{parent}/{name}" for parent, name in pairs if name)


def environment(service: Service) -> dict[str, str]:
    """The environment of the process, without what its `environment_file` adds."""
    user, _ = _user_and_group(service)
    if service.agent:
        # launchd, or else STARTER, adds whose it is, and where that home is.
        return {"PATH": PATH, **service.environment}
    home = f"{STATE}/{service.state_directory}" if service.state_directory else "/var/empty"
    if user == "root":
        home = "/var/root"
    shown = {"CREDENTIALS_DIRECTORY": f"{CREDENTIALS}/{service.name}"} if service.credentials else {}
    return {"HOME": home, "PATH": PATH, "USER": user, "LOGNAME": user, **shown, **service.environment}


def started_with(service: Service) -> tuple[str, ...]:
    """Files whose change means that the process must be restarted; the first is the definition."""
    return tuple(dict.fromkeys((plist_path(service), service.command[0], *service.read_at_start)))


def as_service(service: Service) -> tuple[str, ...]:
    """The words before a command that is run as the service would run it, `--` still to follow: see STARTER, `call`.

    Its environment, too, which has no secret: that of the `environment_file` is read on the box.
    """
    values = [f"{name}={value}" for name, value in environment(service).items()]
    return ("/usr/bin/env", "-i", *values, STARTER_PATH, "call", *_accounts(service))


def _accounts(service: Service) -> list[str]:
    user, group = _user_and_group(service)
    words = ["--name", service.name, "--user", user, "--group", group]
    return words + (["--environment", service.environment_file] if service.environment_file else [])


def identity(service: Service) -> str:
    """Names this definition; also part of the plist, so that a record tells which one launchd had loaded.

    Raises ValueError, as `plist` does.
    """
    return sha256(plistlib.dumps(_plist(service, ""))).hexdigest()[:16]


def plist(service: Service) -> str:
    """The definition of `service` for launchd.

    Raises ValueError for what launchd cannot do: `notify` without a probe, `requires`, no user, a `schedule` or a
    setting that has no counterpart.
    """
    return plistlib.dumps(_plist(service, identity(service)), sort_keys=False).decode()


def _arguments(service: Service, definition: str) -> list[str]:
    words = [STARTER_PATH, "start", *_accounts(service)]
    if service.agent:
        words += ["--notes", f"{AGENTS_NOTES}/{service.name}", "--log", log_path(service)]
    for path in folders(service):
        words += ["--folder", path]
    if service.wait_for_address:
        words += ["--address", str(ip_address(service.wait_for_address))]
    for path in service.wait_for_files:
        words += ["--file", path]
    for name, path in sorted(service.credentials.items()):
        words += ["--credential", f"{name}:{path}"]
    if not service.schedule:
        words += ["--identity", definition]
        for path in started_with(service):
            words += ["--reads", path]
        for path in service.reload_files:
            words += ["--loads", path]
    return [*words, "--", *service.command]


def _plist(service: Service, definition: str) -> dict[str, Any]:
    if service.notify and not service.probe:
        raise ValueError(
            f"the service {service.name} says itself when it is ready, which launchd does not hear: give it a `probe`"
        )
    if service.requires or service.oneshot:
        raise ValueError(f"the service {service.name} depends on another, or is one: launchd knows no such thing")
    if service.agent and (service.schedule or service.credentials or service.reload_files or folders(service)):
        raise ValueError(
            f"the service {service.name} is a LaunchAgent, which has no `schedule`, `credentials` or `reload_files`, "
            "and no folders of its own: root must see to those"
        )
    values: dict[str, Any] = {
        "Label": label(service),
        "ProgramArguments": _arguments(service, definition),
        "EnvironmentVariables": environment(service),
        "WorkingDirectory": service.working_directory or "/",
    }
    if service.schedule:
        values["StartCalendarInterval"] = calendar(service.schedule)
        values["ProcessType"] = "Background"
    else:
        # A job without a type is kept slow, in favour of whoever sits before the screen.
        values |= {"RunAtLoad": True, "KeepAlive": True, "ThrottleInterval": 10, "ProcessType": "Interactive"}
    values |= {
        "ExitTimeOut": service.stop_timeout,
        "Umask": 0o077,
    }
    if service.agent:
        values["LimitLoadToSessionType"] = "Aqua"
    else:
        # Of an agent STARTER opens it: another user's session could not be started with it, nor so be left.
        values |= {"StandardOutPath": log_path(service), "StandardErrorPath": log_path(service)}
    limits = _limits(service)
    if limits:
        values |= {"SoftResourceLimits": limits, "HardResourceLimits": limits}
    return values


def _limits(service: Service) -> dict[str, int]:
    limits = {}
    for name, value in service.settings.items():
        if name in _NEEDLESS:
            continue
        if name not in _LIMITS or not isinstance(value, str) or not (value.isdecimal() or value == "infinity"):
            raise ValueError(f"the service {service.name} has a setting that launchd does not know: {name}={value}")
        if value != "infinity":
            limits[_LIMITS[name]] = int(value)
    return limits


def calendar(schedule: str) -> list[dict[str, int]]:
    """`schedule`, an event of systemd.time(7), as StartCalendarInterval of launchd.plist(5).

    Known are `hourly`, `daily`, `weekly`, `monthly`, a time of the day (`04:30`, `*:15`, `*:0/10`), before it days of
    the week (`Sun`, `Mon,Thu`, `Mon..Fri`) or a date of each month (`*-*-01`). Raises ValueError for anything else.
    """
    unknown = ValueError(
        f"{schedule!r} is no time that launchd knows: write for example `daily`, `Sun 04:00`, `Mon..Fri 05:30` or "
        "`*-*-01 04:00`"
    )
    text = _WORDS.get(schedule.strip().lower(), schedule).strip().lower()
    match = re.fullmatch(r"(?:(?P<days>[a-z.,]+)\s+)?(?:\*-\*-(?P<date>\*|\d{1,2})\s+)?(?P<time>[\d*:/]+)", text)
    clock = re.fullmatch(r"(\*|\d{1,2}):(\d{1,2})(?:/(\d{1,2}))?(?::0{1,2})?", match["time"]) if match else None
    if not match or not clock:
        raise unknown
    hour, first, step = clock.groups()
    times: dict[str, int] = {}
    if hour != "*":
        times["Hour"] = int(hour)
    minutes = list(range(int(first), 60, int(step))) if step and int(step) else [int(first)]
    if match["date"] not in (None, "*"):
        times["Day"] = int(match["date"])
    if times.get("Hour", 0) > 23 or int(first) > 59 or step == "0" or not 1 <= times.get("Day", 1) <= 31:
        raise unknown
    days = _weekdays(match["days"]) if match["days"] else [None]
    if days is None:
        raise unknown
    return [
        {**({} if day is None else {"Weekday": day}), **times, "Minute": minute} for day in days for minute in minutes
    ]


def _weekdays(text: str) -> list[int] | None:
    """The days of the week in `text`, Sunday being 0; None when it names none."""
    found: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        ends = [next((n for n, day in enumerate(_DAYS) if _is_day(word, day)), -1) for word in (first, last or first)]
        if min(ends) < 0 or (dots and not last):
            return None
        day = ends[0]
        found.append(day)
        while day != ends[1]:
            day = (day + 1) % 7
            found.append(day)
    return sorted(set(found))


def _is_day(word: str, day: str) -> bool:
    names = {"sun": "sunday", "mon": "monday", "tue": "tuesday", "wed": "wednesday", "thu": "thursday"}
    return word in (day, {**names, "fri": "friday", "sat": "saturday"}[day])
