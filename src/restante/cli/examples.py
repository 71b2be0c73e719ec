"""The examples in the help texts, by command."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("restante demo",),
    "init": (
        "restante init ann@example.org",
        "restante init ann@example.org --yes",
        "restante init ann@example.org --mail smtp --yes --print",
    ),
    "serve": (
        "restante serve",
        "restante -c /etc/restante/restante.toml serve",
        "restante serve --listen pop3s://127.0.0.1:1995",
    ),
    "status": ("restante status", "restante status --exit-code", "restante status --json"),
    "log": (
        "restante log -f",
        "restante log -f --user ann --level warning",
        'restante log --since "-1 hour"',
    ),
    "reload": ("restante reload", "restante -c /etc/restante/restante.toml reload"),
    "sessions": ("restante sessions", "restante sessions --user ann --json"),
    "sessions list": ("restante sessions list", "restante sessions list --user ann"),
    "sessions end": (
        "restante sessions end 1f3a5c7e90",
        "restante sessions end --user ann",
    ),
    "doctor": (
        "restante doctor",
        "restante doctor --fix",
        "restante doctor --round-trip ann",
        "restante doctor --json",
        "restante doctor --ntp ntp.example.org",
    ),
    "check": (
        "restante check",
        "restante check -c /etc/restante/restante.toml",
        "restante check --example > restante.toml",
    ),
    "user": (
        "restante user add ann",
        "restante user list",
        "restante user quota ann 2GiB",
    ),
    "user add": (
        "restante user add ann",
        "restante user add ann@example.org --generate",
        "restante user add ann --password-file ann.password",
    ),
    "user passwd": (
        "restante user passwd ann",
        "restante user passwd ann --generate --length 20",
    ),
    "user list": ("restante user list", "restante user list --json"),
    "user show": ("restante user show ann", "restante user show ann --json"),
    "user permit": (
        "restante user permit ann --network 192.0.2.0/24 --tls",
        "restante user permit ann --network any --no-tls",
        "restante user permit ann --read-only",
    ),
    "user quota": (
        "restante user quota ann 2GiB",
        "restante user quota ann none",
        "restante user quota ann default",
    ),
    "user hold": (
        "restante user hold ann 30d",
        "restante user hold ann keep",
        "restante user hold ann default",
    ),
    "user disable": ("restante user disable ann", "restante user disable ann --json"),
    "user enable": ("restante user enable ann", "restante user enable ann --json"),
    "user rm": ("restante user rm ann", "restante user rm ann --yes"),
    "user app-password": (
        "restante user app-password new ann phone",
        "restante user app-password list ann",
    ),
    "user app-password new": (
        "restante user app-password new ann phone",
        "restante user app-password new ann scanner --length 24",
    ),
    "user app-password list": (
        "restante user app-password list ann",
        "restante user app-password list ann --json",
    ),
    "user app-password revoke": ("restante user app-password revoke ann phone",),
    "auth": (
        "restante auth why ann 192.0.2.7",
        "restante auth why ann 192.0.2.7 --clear",
    ),
    "auth why": (
        "restante auth why ann 192.0.2.7",
        "restante auth why ann 192.0.2.7 --clear",
        "restante auth why ann 192.0.2.7 --mechanism SCRAM-SHA-256",
    ),
    "maildrop": (
        "restante maildrop list",
        "restante maildrop log ann --since 2d",
        "restante maildrop restore ann --since 2h",
    ),
    "maildrop list": ("restante maildrop list", "restante maildrop list --json"),
    "maildrop show": ("restante maildrop show ann", "restante maildrop show ann --json"),
    "maildrop log": ("restante maildrop log ann", "restante maildrop log ann --since 2d"),
    "maildrop held": ("restante maildrop held ann", "restante maildrop held ann --json"),
    "maildrop restore": (
        "restante maildrop restore ann --since 2h",
        "restante maildrop restore ann --all --same-uidl",
    ),
    "maildrop export": (
        "restante maildrop export ann > unique-ids",
        "restante maildrop export ann --uidlist > dovecot-uidlist",
    ),
    "maildrop verify": ("restante maildrop verify ann", "restante maildrop verify --all"),
    "maildrop reindex": ("restante maildrop reindex ann", "restante maildrop reindex --all"),
    "maildrop purge": (
        "restante maildrop purge ann --older-than 7d",
        "restante maildrop purge --yes",
        "restante maildrop purge ann --yes",
    ),
    "deliver": (
        "restante deliver ann < message",
        "restante deliver ann --from bob@example.net < message",
    ),
    "import": (
        "restante import dovecot /srv/old/Maildir ann --dry-run",
        "restante import mbox Inbox ann",
        "restante import getmail .getmail",
    ),
    "import dovecot": (
        "restante import dovecot /srv/old/Maildir ann --dry-run",
        "restante import dovecot /srv/old/Maildir ann",
    ),
    "import courier": ("restante import courier /srv/old/Maildir ann",),
    "import cyrus": ("restante import cyrus /srv/old/spool ann --uidvalidity 1",),
    "import mbox": ("restante import mbox Inbox ann",),
    "import uw": ("restante import uw /srv/old/mbox ann",),
    "import getmail": (
        "restante import getmail .getmail --dry-run",
        "restante import getmail .getmail --to maildir:Mail",
    ),
    "import fetchmail": ("restante import fetchmail .fetchmailrc --to maildir:Mail",),
    "import mpop": ("restante import mpop .mpoprc --to maildir:Mail",),
    "account": (
        "restante account add isp pop3s://ann@pop.example.org --to maildir:Mail",
        "restante account list",
        "restante account test isp",
    ),
    "account add": (
        "restante account add isp pop3s://ann@pop.example.org --to maildir:Mail",
        "restante account add ann@example.org --host pop.example.org --to maildir:Mail",
        "restante account add ann@outlook.com --to maildrop:ann",
    ),
    "account list": ("restante account list", "restante account list --json"),
    "account show": ("restante account show isp", "restante account show isp --json"),
    "account auth": ("restante account auth isp", "restante account auth isp --device"),
    "account test": ("restante account test isp",),
    "account adopt": (
        "restante account adopt isp",
        "restante account adopt isp --like Mail",
    ),
    "account log": ("restante account log isp", "restante account log isp --json"),
    "account rename": ("restante account rename isp provider",),
    "account rm": ("restante account rm isp", "restante account rm isp --yes"),
    "collect": (
        "restante collect isp --dry-run",
        "restante collect --all",
        "restante collect --all --watch",
    ),
    "backup": (
        "restante backup /var/backups/restante/restante.tar.gz",
        "restante backup /var/backups/restante/",
        "restante backup --verify /var/backups/restante/",
    ),
    "restore": (
        "restante restore /var/backups/restante/restante.tar.gz",
        "restante restore /var/backups/restante/ --to restored",
    ),
    "fetch": (
        "restante fetch pop3s://ann@pop.example.org --to Mail --keep",
        "restante fetch pop3s://ann@pop.example.org --to mbox:archive --limit 100",
    ),
}
