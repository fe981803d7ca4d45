package pocketrank

/** The greatest scale, weight, bias or count, in a file or of an event: nobody has more, and products stay finite. */
const val MOST = 1e12

/** Vectors of one segment or item as int8: (K, D) in a row, and (K,) scales; a value is `vectors * scales`. */
class Quantised(val vectors: ByteArray, val scales: FloatArray)

/**
 * Rounds vectors to int8, half to even.
 *
 * @param x (K, D) in a row, finite.
 * @return scales are max|x| / 127, and 1 for a vector of zeros or of what float32 cannot divide by 127.
 *
 * Source: docs/formats.md, "Quantiser".
 */
fun quantise(x: FloatArray, width: Int): Quantised {
    val vectors = ByteArray(x.size)
    val scales = FloatArray(x.size / width)
    for (k in scales.indices) {
        var peak = 0f
        for (d in k * width until (k + 1) * width) peak = maxOf(peak, Math.abs(x[d]))
        val scale = peak / 127f
        scales[k] = if (scale > 0) scale else 1f
        for (d in k * width until (k + 1) * width) {
            vectors[d] = Math.rint((x[d] / scales[k]).toDouble()).coerceIn(-127.0, 127.0).toInt().toByte()
        }
    }
    return Quantised(vectors, scales)
}
