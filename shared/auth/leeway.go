package auth

// Leeway is how long after its exp a token is still accepted, because clocks differ.
const Leeway = leeway
