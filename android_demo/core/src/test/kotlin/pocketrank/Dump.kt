package pocketrank

import java.io.File

/** What `pocketrank verify --dump` wrote, for tests here and of engines. */
object Dump {
    val folder: File = System.getProperty("dump").orEmpty().let { path ->
        require(File(path, "index.json").isFile) {
            "no dump at '$path'; run the tests by `make android-test`, or give -Ddump=DIR of `pocketrank verify --dump DIR`"
        }
        File(path)
    }

    @Suppress("UNCHECKED_CAST")
    fun cases(name: String): List<Map<String, Any?>> = read(name) as List<Map<String, Any?>>

    fun read(name: String): Any? = File(folder, name).readBytes().let { Json.read(it, it.size.toLong(), deepest = 8) }

    fun tensors(name: String): Safetensors = File(folder, name).let { Safetensors.read(Safetensors.map(it), it.path) }

    @Suppress("UNCHECKED_CAST")
    fun Map<String, Any?>.map(name: String) = getValue(name) as Map<String, Any?>

    fun Map<String, Any?>.long(name: String): Long = getValue(name) as Long

    fun Map<String, Any?>.text(name: String): String = getValue(name) as String

    fun Map<String, Any?>.list(name: String): List<Any?> = getValue(name) as List<*>

    fun Map<String, Any?>.longs(name: String): LongArray = list(name).map { it as Long }.toLongArray()

    fun Map<String, Any?>.ints(name: String): IntArray = list(name).map { (it as Long).toInt() }.toIntArray()

    fun Map<String, Any?>.double(name: String): Double = number(getValue(name))

    fun number(value: Any?): Double = (value as Number).toDouble()

    /** Segments of a safetensors file, columns as `NAME.vectors` and so on. */
    fun segments(file: Safetensors, name: String): List<Segment> {
        fun column(part: String) = file["$name.$part"]
        val (vectors, scales, top) = listOf("vectors", "scales", "top_items").map(::column)
        return List(column("level").size) {
            Segment(
                vectors.part(it, 1).byteArray(), scales.part(it, 1).floatArray(), column("start_us").longs.get(it),
                column("end_us").longs.get(it), column("weight").floats.get(it), column("n_events").longs.get(it),
                column("ordinal_first").longs.get(it), column("ordinal_last").longs.get(it),
                column("level").longs.get(it).toInt(), top.part(it, 1).intArray(),
            )
        }
    }
}
