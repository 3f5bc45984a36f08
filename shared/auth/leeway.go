package auth

// Leeway is for how long after its exp a token is still taken, because clocks differ.
const Leeway = leeway
