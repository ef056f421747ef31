"""The calibration target: it answers by itself, after a delay that its question names."""

from meshdns.lab.parts.component import LOW_PORTS, NOBODY, Alike, Container

COMMAND = ("python3", "/opt/meshdns/null_target.py", "--idle-s", "0.02")
PART = Alike("observer", Container(COMMAND, user=NOBODY, sysctls=LOW_PORTS))
