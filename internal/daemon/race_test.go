package daemon

// UnderRace tells tests outside of the package that everything takes ten times
// as long.
const UnderRace = underRace
